"""A learned policy: a small network scores every budget, and a price on FLOPs decides."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adaperceiver_jax.evaluate.flops import exit_test_flops, flops
from adaperceiver_jax.evaluate.outcomes import Grid
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.outputs import Embedded
from adaperceiver_jax.models.policy import PeekNetwork, PolicyNetwork
from adaperceiver_jax.models.stepper import Stepper
from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.serve import embed


@dataclasses.dataclass(frozen=True)
class Peek:
    """The sub-network whose prediction a PeekNetwork looks at, at full width."""

    num_tokens: int
    depth: int = 1


class Learned(Policy):
    """Takes for each image the budget of the highest score, less `price` a GFLOP.

    A network trained by REINFORCE scores budgets by their log-probabilities, and is used at price
    0; one that regresses each budget's loss (its scores are negative losses) serves any target:
    `at` finds the price.
    """

    def __init__(
        self,
        model: AdaPerceiver,
        params: Any,
        network: PolicyNetwork | PeekNetwork,
        network_params: Any,
        grid: Grid,
        *,
        peek: Peek | None = None,
        predicts_losses: bool = True,
        price: float = 0.0,
    ) -> None:
        """A policy for `model`.

        Args:
          network: a PolicyNetwork looks at the patches, a PeekNetwork at what `peek` predicts.
          grid: what each head's choices are, in their order; an axis of one choice has no head's
            say.
          predicts_losses: whether its scores are negative losses, to which a price can be added.
        """
        if isinstance(network, PeekNetwork) != (peek is not None):
            raise ValueError(
                f"peek={peek} with a {type(network).__name__}: a PeekNetwork needs one, a "
                "PolicyNetwork has none"
            )
        heads = ("token_choices", "width_choices", "depth_choices")
        for name, choices in zip(heads, grid.shape, strict=True):
            had = getattr(network.config, name)
            if choices not in (1, had):
                raise ValueError(f"grid: {choices} choices, but the network's {name} is {had}")
        self.model, self.params = model, params
        self.network, self.network_params = network, network_params
        self.grid, self.peek, self.price = grid, peek, price
        self.predicts_losses = predicts_losses
        self.budgets = np.array(grid.sub_networks())
        costs = [flops(model.config, *s).total / 1e9 for s in self.budgets.tolist()]
        self.costs = np.array(costs)
        """GFLOPs of each budget, (budgets,)."""
        self.gflops = choosing_gflops(model.config, network, peek)

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        best = (self.scores(images, embedded) - self.price * self.costs).argmax(-1)
        return Budgets(*self.budgets[best].T)

    def scores(self, images: ArrayLike, embedded: Embedded | None = None) -> np.ndarray:
        """(B, budgets) of images (B, H, W, C): the higher, the better."""
        if embedded is None:
            embedded = embed(self.model, self.params, images)
        heads = _scores(
            self.model, self.params, self.network, self.network_params, self.peek, embedded
        )
        token, width, depth = (  # (B, choices) each; an axis of one choice has no say
            np.asarray(x) if choices > 1 else np.zeros((len(x), 1), np.float32)
            for x, choices in zip(heads, self.grid.shape, strict=True)
        )
        each = token[:, :, None, None] + width[:, None, :, None] + depth[:, None, None, :]
        return each.reshape(len(each), -1)

    def at(self, gflops: float, images: Any) -> Learned:
        """The same policy at the price where these images take `gflops` each on average, choosing
        included.

        images: (B, H, W, C), or several such batches. They need no labels; a few thousand like
        those to be served are enough.
        """
        batches = [images] if hasattr(images, "shape") else list(images)
        if not batches:
            raise ValueError("images=[]: a price is found on images; give some")
        if not self.predicts_losses:
            raise ValueError(
                f"gflops={gflops}: this policy has one trade-off (predicts_losses=False); learn "
                "one with config.policy.learner=regress to choose another"
            )
        scores = np.concatenate([self.scores(batch) for batch in batches])
        policy = copy.copy(self)
        policy.price = price_of(scores, self.costs, gflops - self.gflops)
        return policy


def price_of(scores: np.ndarray, costs: np.ndarray, target: float) -> float:
    """The price at which budgets of highest score less price x cost cost `target` on average.

    scores (N, budgets), costs (budgets,), in GFLOPs. It is the Lagrange multiplier of that target;
    found by bisection, since the mean cost falls with the price. ValueError for a target below the
    cheapest budget.
    """
    if target < costs.min():
        raise ValueError(
            f"gflops: {target:.4g} are left for the model; the cheapest budget takes "
            f"{costs.min():.4g}"
        )

    def mean_cost(price: float) -> float:
        return float(costs[(scores - price * costs).argmax(-1)].mean())

    if mean_cost(0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while mean_cost(high) > target:
        low, high = high, 2 * high
        if high > 1e12:  # scores that differ by nothing but rounding
            break
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > target else (low, middle)
    return high


def choosing_gflops(config: Any, network: Any, peek: Peek | None) -> float:
    """Cost of choosing per image, beyond patches and their keys and values."""
    total = flops(network.config).total
    if peek is not None:
        parts = flops(config.replace(output_feat_dim=None), peek.num_tokens, None, peek.depth)
        whole, patches = parts.by_part, (config.image_size // config.patch_size) ** 2
        keys_values = 4 * patches * config.embed_dim**2
        read = whole["read"] - keys_values
        blocks = whole["projections"] + whole["attention"] + whole["ffn"]
        total += read + blocks + exit_test_flops(config, peek.num_tokens)
    return total / 1e9


@functools.partial(jax.jit, static_argnums=(0, 2, 4))
def _scores(model, params, network, network_params, peek, embedded):
    seen = embedded.patches
    if peek is not None:
        logits = Stepper(model, params, peek.num_tokens).logits(embedded, peek.depth)
        seen = jax.nn.log_softmax(logits.astype(jnp.float32))
    out = network.apply({"params": network_params}, seen)
    return out.token_logits, out.width_logits, out.depth_logits
