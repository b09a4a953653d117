"""Learning labels: once for all sub-networks, or, for a teacher to be, a plain ViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from adaperceiver_jax.data.mixing import MixingSettings, mix
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.losses.classification import soft_cross_entropy
from adaperceiver_jax.models.vit import ViT
from adaperceiver_jax.tasks.objective import Objective
from adaperceiver_jax.tasks.once_for_all import OnceForAll, Targets, scores, smoothed
from adaperceiver_jax.train.task import Batch, Metrics, SubNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(OnceForAll):
    """Cross-entropy on (soft) labels at every readout: from scratch, or fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given, neutral in (
            ("features", self.settings.features, False),
            ("temperature", self.settings.temperature, 1.0),
        ):
            if given != neutral:
                raise ValueError(
                    f"config.loss.{name}={given}: needs a teacher; config.task is 'classify'"
                )

    def targets(self, constants: Any, samples: Mapping[str, jax.Array]) -> Targets:
        return Targets(labels=samples["labels"])

    def logit_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return soft_cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(Objective):
    """Trains a ViT, for AdaPerceivers to learn from."""

    model: ViT
    mixing: MixingSettings = MixingSettings()

    metric = "accuracy"
    inputs = ("image", "label")

    @property
    def num_classes(self) -> int:
        return self.model.config.num_classes or 0

    def __post_init__(self) -> None:
        if self.model.config.num_classes is None:
            raise ValueError("config.vit.num_classes=None: a teacher of logits needs classes")

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        labels = smoothed(batch["label"], self.num_classes, self.mixing.label_smoothing)
        images = self.images.normalise(batch["image"])
        images, labels = mix(images, labels, self.mixing, key)
        return {"images": images, "labels": labels}, {}

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        out: Any = self.model.apply({"params": params}, samples["images"])
        loss = soft_cross_entropy(out.logits, samples["labels"])
        return loss, {"label": loss}

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> Metrics:
        out: Any = self.model.apply({"params": params}, self.images.normalise(batch["image"]))
        return scores(out.logits, batch["label"])

    def train_flops(self, trained: Any) -> float:
        return 3 * flops(self.model.config).total
