"""Learning which budget an image gets, for an AdaPerceiver that stays as it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.evaluate.flops import exit_test_flops, flops
from adaperceiver_jax.evaluate.outcomes import Grid, Scores, grid_scores, make_grid, passes
from adaperceiver_jax.losses.reinforce import (
    entropy,
    index_cost,
    regression_loss,
    reinforce_loss,
    reward,
)
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.params import init_params
from adaperceiver_jax.models.policy import (
    PeekConfig,
    PeekNetwork,
    PolicyConfig,
    PolicyNetwork,
    PolicyOutput,
)
from adaperceiver_jax.tasks.objective import Objective
from adaperceiver_jax.train.settings import check_fields
from adaperceiver_jax.train.task import Batch, Metrics, SubNetwork

LEARNERS = ("reinforce", "regress")
VIEWS = ("patches", "peek")
AXES = ("tokens", "width", "depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings of 'policy': what is learned, and for which model."""

    path: str = ""
    """A trained AdaPerceiver with classes, which is not changed: a finished run's folder, a hub
    folder or id; 'made-up' takes fresh weights of `config.model`, to try a run."""
    learner: str = "reinforce"
    """'reinforce': draw a budget an image and reinforce what was rewarded, as in the paper;
    'regress': predict the loss of every budget, so that any price can be put on them later."""
    looks_at: str = "patches"
    """Input of the network: 'patches', the embedded image, as in the paper; 'peek', the
    log-probabilities of a small sub-network: fewest trained tokens, full width, few blocks."""
    peek_depth: int = 1
    """Blocks of that sub-network."""
    hidden: int = 64
    """Hidden units of the network that peeks."""
    axes: tuple[str, ...] = ("tokens",)
    """Axes on which it chooses: 'tokens' and 'width', among the trained ones, and 'depth', among
    all. The others stay whole."""
    reward_scale: float = 3.0
    """Weight of the negative cross-entropy in the reward."""
    cost_weight: float = 0.05
    """Weight of the cost in the reward: index / (choices - 1), the mean over the axes."""
    entropy: float = 0.2
    """Weight of the bonus for the entropy of the choice; of 'reinforce', as is the next."""
    baseline_decay: float = 0.995
    """Decay of the running mean of earlier rewards."""

    def __post_init__(self) -> None:
        def some(axes: tuple[str, ...]) -> bool:
            return 0 < len(axes) == len(set(axes) & set(AXES))

        check = functools.partial(check_fields, self, "config.policy")
        check("learner", LEARNERS.__contains__, f"one of {', '.join(LEARNERS)}")
        check("looks_at", VIEWS.__contains__, f"one of {', '.join(VIEWS)}")
        check("axes", some, f"some of {', '.join(AXES)}, each once")
        check("hidden peek_depth", lambda n: n >= 1, "at least 1")
        check("cost_weight entropy", lambda x: x >= 0, "at least 0")
        check("reward_scale", lambda x: x > 0, "above 0")
        check("baseline_decay", lambda x: 0 <= x < 1, "in [0, 1)")


def policy_grid(settings: PolicySettings, config: AdaPerceiverConfig) -> Grid:
    """The budgets among which a policy chooses; ValueError where there is nothing to choose."""
    c, where = config, f"config.policy.path={settings.path!r}"
    if c.num_classes is None:
        raise ValueError(f"{where}: the model has no classes; give one that classifies images")
    if not c.token_granularities:
        raise ValueError(f"{where}: the model has no token_granularities; give one trained at some")
    if settings.peek_depth > c.depth:
        raise ValueError(
            f"config.policy.peek_depth={settings.peek_depth}: the model has {c.depth} blocks"
        )
    grid = make_grid(
        c,
        None if "tokens" in settings.axes else (c.max_latent_tokens,),
        None if "width" in settings.axes else (c.full_width,),
        None if "depth" in settings.axes else (c.depth,),
    )
    if max(grid.shape) == 1:
        raise ValueError(
            f"config.policy.axes={settings.axes}: the model has one choice on each, {grid}; take "
            "an axis of which it has several"
        )
    return grid


def policy_network(
    settings: PolicySettings, config: AdaPerceiverConfig, dtype: Any
) -> PolicyNetwork | PeekNetwork:
    """The network that chooses for a model of this config."""
    sizes = policy_grid(settings, config).shape
    choices = dict(zip(("token_choices", "width_choices", "depth_choices"), sizes, strict=True))
    if settings.looks_at == "peek":
        classes = config.num_classes or 0
        return PeekNetwork(
            PeekConfig(num_classes=classes, hidden=settings.hidden, **choices), dtype
        )
    patches = (config.image_size // config.patch_size) ** 2
    return PolicyNetwork(
        PolicyConfig(embed_dim=config.embed_dim, num_patches=patches, **choices), dtype
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnPolicy(Objective):
    """Trains the network that chooses; an axis that is not chosen has one choice.

    Subclasses say what it minimises.
    """

    model: PolicyNetwork | PeekNetwork
    frozen: AdaPerceiver
    """The model that is chosen for."""
    frozen_params: Callable[[], Any] = dataclasses.field(compare=False, repr=False)
    """Gives its parameters; called once the run is known to be sound."""
    settings: PolicySettings
    image_size: tuple[int, int]
    """Height and width."""

    inputs = ("image", "label")

    @property
    def num_classes(self) -> int:
        return self.frozen.config.num_classes or 0

    @functools.cached_property
    def grid(self) -> Grid:
        """The budgets."""
        return policy_grid(self.settings, self.frozen.config)

    def init_params(self, key: jax.Array) -> Any:
        if isinstance(self.model, PeekNetwork):
            return init_params(self.model, key)  # its kernels are made for its size
        return super().init_params(key)

    def constants(self) -> dict[str, Any]:
        return {"frozen": self.frozen_params()}

    def see(self, frozen: Any, images: jax.Array) -> jax.Array:
        """The network's input, from normalised images."""
        variables = {"params": frozen}
        if self.settings.looks_at == "patches":
            patches: Any = self.frozen.apply(variables, images, method="embed")
            return patches
        fewest = self.frozen.config.token_granularities[0]
        out: Any = self.frozen.apply(
            variables, images, num_tokens=fewest, depth=self.settings.peek_depth
        )
        return jax.nn.log_softmax(out.logits.astype(jnp.float32))

    def choose(
        self, params: Any, constants: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[PolicyOutput, Scores]:
        """The network's logits, and what each budget gives; no gradient reaches the frozen."""
        frozen = jax.lax.stop_gradient(constants["frozen"])
        out: Any = self.model.apply({"params": params}, self.see(frozen, images))
        return out, grid_scores(self.frozen, frozen, images, labels, self.grid)

    def cost(self, actions: tuple[jax.Array, ...]) -> jax.Array:
        """Indices (B,) on the three axes -> (B,): the mean over the axes that are chosen."""
        costs = [
            jnp.asarray(index_cost(n))[a] for n, a in zip(self.grid.shape, actions, strict=True)
        ]
        return sum(costs, start=jnp.zeros(())) / len(self.settings.axes)

    def reward(self, losses: jax.Array, actions: tuple[jax.Array, ...]) -> jax.Array:
        """Losses (T, W, L, B) of all budgets, indices (B,) on the axes -> rewards (B,)."""
        s = self.settings
        return reward(taken(losses, actions), self.cost(actions), s.reward_scale, s.cost_weight)

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> Metrics:
        images = self.images.normalise(batch["image"])
        return self.judge(*self.choose(params, constants, images, batch["label"]))

    def judge(self, out: PolicyOutput, scores: Scores) -> Metrics:
        """Scores of the budgets with the largest logits, (B,) each: 'accuracy', 'gflops' (the
        network's own not among them), 'cost' and 'reward'."""
        actions = tuple(logits.argmax(axis=-1) for logits in axes_of(out))
        gflops = [
            flops(self._scorer, *budget, self.image_size).total / 1e9
            for budget in self.grid.sub_networks()
        ]
        table = jnp.asarray(np.reshape(gflops, (*self.grid.shape, 1)), jnp.float32)
        every = jnp.broadcast_to(table, scores.loss.shape)
        return {
            "accuracy": taken(scores.right, actions).astype(jnp.float32),
            "gflops": taken(every, actions),
            "cost": self.cost(actions),
            "reward": self.reward(scores.loss, actions),
        }

    def train_flops(self, trained: Any) -> float:
        """FLOPs of the grid's passes, each with a readout after every block, three times the
        network's forward, and what it looks at beyond the patches."""
        c, grid, size = self._scorer, self.grid, self.image_size
        total = 3 * flops(self.model.config).total
        if self.settings.looks_at == "peek":
            peek = flops(c, c.token_granularities[0], None, self.settings.peek_depth, size)
            total += peek.total
        for granularities, counts in passes(c, grid.tokens):
            n, depth = granularities[-1], grid.depths[-1]
            for width in grid.widths:
                encoder = flops(c, n, width, depth, size, token_granularities=granularities).encoder
                total += encoder + depth * len(counts) * exit_test_flops(c, n)
        return total

    @property
    def _scorer(self) -> AdaPerceiverConfig:
        """The part of the frozen model that is run: no features are written."""
        return self.frozen.config.replace(output_feat_dim=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce(LearnPolicy):
    """REINFORCE with one sample an image and a running mean of earlier rewards as baseline."""

    metric = "reward"

    def memory(self) -> dict[str, jax.Array]:
        return {"baseline": jnp.zeros(())}

    def remember(self, memory: dict[str, jax.Array], metrics: Metrics) -> dict[str, jax.Array]:
        """The first step's baseline is its own mean reward, so the mean starts from that."""
        decay = self.settings.baseline_decay
        return {"baseline": decay * metrics["baseline"] + (1 - decay) * metrics["reward"]}

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        """Images, labels, and Gumbel noise: added to logits, its largest sum is a draw from their
        softmax."""
        images = self.images.normalise(batch["image"])
        keys = jax.random.split(key, len(AXES))
        noise = tuple(
            jax.random.gumbel(k, (len(images), n))
            for k, n in zip(keys, self.grid.shape, strict=True)
        )
        return {"images": images, "labels": batch["label"], "noise": noise}, {"first": step == 0}

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """'policy' and 'entropy' are the loss; 'reward' and 'baseline' stand beside it."""
        out, scores = self.choose(params, constants, samples["images"], samples["labels"])
        logits = axes_of(out)
        actions = tuple(
            (x + noise).argmax(axis=-1) for x, noise in zip(logits, samples["noise"], strict=True)
        )
        rewards = self.reward(scores.loss, actions)
        mean = rewards.mean()
        baseline = jnp.where(shared["first"], mean, constants["baseline"])
        pairs = zip(logits, actions, strict=True)
        policy = sum(reinforce_loss(x, a, rewards - baseline) for x, a in pairs)
        bonus = self.settings.entropy * sum(entropy(x).mean() for x in logits)
        parts = {"policy": jnp.asarray(policy), "entropy": -jnp.asarray(bonus)}
        return parts["policy"] + parts["entropy"], {**parts, "reward": mean, "baseline": baseline}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regress(LearnPolicy):
    """Predicts the negative loss of every budget, as a sum of a number an axis."""

    metric = "-loss"

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        return {"images": self.images.normalise(batch["image"]), "labels": batch["label"]}, {}

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        out, scores = self.choose(params, constants, samples["images"], samples["labels"])
        loss = regression_loss(predicted(out), scores.loss).mean()
        return loss, {"regression": loss}

    def judge(self, out: PolicyOutput, scores: Scores) -> Metrics:
        """Scores as of every policy, and 'loss', the squared error."""
        return {**super().judge(out, scores), "loss": regression_loss(predicted(out), scores.loss)}


def axes_of(out: PolicyOutput) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (B, choices) of tokens, width and depth."""
    return out.token_logits, out.width_logits, out.depth_logits


def predicted(out: PolicyOutput) -> jax.Array:
    """The sum of a number an axis: (T, W, L, B), of every budget."""
    tokens, width, depth = (x.T for x in axes_of(out))
    return tokens[:, None, None] + width[:, None] + depth


def taken(values: jax.Array, actions: tuple[jax.Array, ...]) -> jax.Array:
    """Values (T, W, L, B) of every budget, indices (B,) on the axes -> (B,)."""
    return values[(*actions, jnp.arange(values.shape[-1]))]
