"""Distillation and classification in common: one pass, every readout, the sum of their losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from adaperceiver_jax.data.mixing import MixingSettings, mix
from adaperceiver_jax.evaluate.flops import flops, once_for_all_readout_flops
from adaperceiver_jax.losses.distillation import feature_loss
from adaperceiver_jax.losses.once_for_all import depth_weights, weighted_mean, weighted_sum
from adaperceiver_jax.models.adaperceiver import AdaPerceiver, trains_encoder
from adaperceiver_jax.tasks.objective import Objective
from adaperceiver_jax.train.settings import check_fields
from adaperceiver_jax.train.task import Batch, Metrics, SubNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which readouts are trained, and how their losses are added."""

    depths: bool = True
    """Read out after every block too, not only at every granularity."""
    widths: bool = True
    """Run each sample at a width drawn from the trained ones, not at the full width."""
    depth_schedule: str = "linear"
    """Weight of depth l: 'linear' l / L, 'uniform' 1 / L."""
    width_loss: float = 0.0
    """Weight of an explicit loss: the whole batch at every trained width, at all tokens and depths.
    Costs a pass a width. 0, as in the paper, trains widths only by drawing them."""
    features: bool = False
    """Learn the teacher's patch features as well as its logits."""
    temperature: float = 1.0
    """Temperature of the distillation's softmaxes."""

    def __post_init__(self) -> None:
        depth_weights(1, self.depth_schedule)
        check_fields(self, "config.loss", "width_loss", lambda x: x >= 0, "at least 0")
        check_fields(self, "config.loss", "temperature", lambda x: x > 0, "above 0")


@struct.dataclass
class Targets:
    """Values that a batch should be mapped to."""

    labels: jax.Array
    """(B, classes): soft labels, or a teacher's logits."""
    features: jax.Array | None = None
    """(B, patches, features) of a teacher."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnceForAll(Objective):
    """A task that trains every sub-network of an AdaPerceiver at once (Algorithm 3).

    Subclasses say what the targets are and what one readout's loss is.
    """

    model: AdaPerceiver
    settings: LossSettings = LossSettings()
    mixing: MixingSettings = MixingSettings()
    evaluated: tuple[SubNetwork, ...] = ()
    """Sub-networks beside the whole model."""

    metric = "accuracy"
    inputs = ("image", "label")

    @property
    def num_classes(self) -> int:
        return self.model.config.num_classes or 0

    def __post_init__(self) -> None:
        c = self.model.config
        if self.settings.widths and not c.widths:
            raise ValueError("config.loss.widths=True with config.model.widths=(): name some")
        if not c.token_granularities:
            raise ValueError(
                "config.model.token_granularities=(): training reads out at each; name at least one"
            )
        if self.settings.features and c.output_feat_dim is None:
            raise ValueError(
                "config.loss.features=True with config.model.output_feat_dim=None: set it to the "
                "teacher's width"
            )

    def targets(self, constants: Any, samples: Mapping[str, jax.Array]) -> Targets:
        """Values that the samples should be mapped to; no gradient flows through them."""
        raise NotImplementedError

    def logit_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Logits (..., B, classes) against the targets' labels -> (...)."""
        raise NotImplementedError

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        """Mixed images and labels, a width a sample, a granularity a depth."""
        c = self.model.config
        mix_key, width_key, token_key = jax.random.split(key, 3)
        images = self.images.normalise(batch["image"])
        labels = smoothed(batch["label"], self.num_classes, self.mixing.label_smoothing)
        images, labels = mix(images, labels, self.mixing, mix_key)
        samples, shared = {"images": images, "labels": labels}, {}
        if self.settings.widths:
            samples["widths"] = self.draw_widths(width_key, images.shape[0])
        if self.settings.depths:
            granularities = jnp.array(c.token_granularities)
            shared["readout_tokens"] = jax.random.choice(token_key, granularities, (c.depth,))
        return samples, shared

    def draw_widths(self, key: jax.Array, count: int) -> jax.Array:
        """(count,) of the trained widths, each as likely as the others."""
        return jax.random.choice(key, jnp.array(self.model.config.widths), (count,))

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The sum over all readouts of one pass."""
        out: Any = self.model.apply(
            {"params": params},
            samples["images"],
            widths=samples.get("widths"),
            readout_tokens=shared.get("readout_tokens"),
            train=True,
            rngs={"dropout": key},
            method="readouts",
        )
        targets = jax.lax.stop_gradient(self.targets(constants, samples))
        parts = self.losses(out, targets)
        if self.settings.width_loss:
            loss = self._width_loss(params, samples["images"], targets, key)
            parts["width"] = self.settings.width_loss * loss
        return jnp.sum(jnp.stack(list(parts.values()))), parts

    def losses(self, out: Any, targets: Any) -> Metrics:
        """The loss of `Readouts` and `Targets` by part: token and depth, logits and features."""
        c = self.model.config
        by_token = np.ones(len(c.token_granularities), np.float32)
        by_depth = depth_weights(c.depth, self.settings.depth_schedule)
        parts = {
            "token": weighted_mean(self.logit_loss(out.token_logits, targets.labels), by_token)
        }
        if out.depth_logits is not None:
            losses = self.logit_loss(out.depth_logits, targets.labels)
            parts["depth"] = weighted_mean(losses, by_depth)
        if self.settings.features:
            losses = feature_loss(out.token_features, targets.features)
            parts["feature_token"] = weighted_sum(losses, by_token)
            if out.depth_features is not None:
                losses = feature_loss(out.depth_features, targets.features)
                parts["feature_depth"] = weighted_sum(losses, by_depth)
        return parts

    def _width_loss(
        self, params: Any, images: jax.Array, targets: Targets, key: jax.Array
    ) -> jax.Array:
        """Mean loss of the whole depth at all tokens over the trained widths, one pass each."""
        widths = self.model.config.widths

        def at(width: jax.Array) -> jax.Array:
            out: Any = self.model.apply(
                {"params": params},
                images,
                widths=jnp.broadcast_to(width, images.shape[:1]),
                token_granularities=self.model.config.token_granularities,
                train=True,
                rngs={"dropout": key},
                method="readouts",
            )
            return self.logit_loss(out.token_logits[-1], targets.labels)

        return jax.lax.map(at, jnp.array(widths)).mean()

    def sub_networks(self) -> tuple[SubNetwork, ...]:
        c = self.model.config
        whole = (c.max_latent_tokens, c.full_width, c.depth)
        return (whole, *(s for s in self.evaluated if s != whole))

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> Metrics:
        """Scores of one sub-network: 'accuracy' (top 1) and 'loss' (cross-entropy), (B,) each."""
        t, w, l = sub_network or self.sub_networks()[0]
        images = self.images.normalise(batch["image"])
        out: Any = self.model.apply({"params": params}, images, num_tokens=t, width=w, depth=l)
        return scores(out.logits, batch["label"])

    def train_flops(self, trained: Any) -> float:
        """FLOPs at the mean of the trained widths: the forward, and its backward, which is twice
        that; without the encoder's where only what follows it is trained."""
        c = self.model.config
        widths = c.widths if self.settings.widths else (c.full_width,)
        tokens = c.token_granularities[-1]
        times = 3 if trains_encoder(trained) else 1
        encoder = [flops(c, num_tokens=tokens, width=w).encoder for w in widths]
        readouts = once_for_all_readout_flops(c, c.token_granularities, self.settings.depths)
        total = times * sum(encoder) / len(widths) + 3 * readouts
        if self.settings.width_loss:
            each = [flops(c, num_tokens=tokens, width=w) for w in c.widths]
            total += sum(times * cost.encoder + 3 * cost.head for cost in each)
        return total


def smoothed(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Labels (B,) -> soft labels (B, classes): 1 - smoothing, the rest spread over all classes."""
    return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def scores(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Logits (B, classes), labels (B,) -> 'accuracy' (0 or 1) and 'loss', (B,) each."""
    log_probs = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_probs, labels[:, None].astype(jnp.int32), axis=-1)[:, 0]
    return {"accuracy": (logits.argmax(-1) == labels).astype(jnp.float32), "loss": loss}
