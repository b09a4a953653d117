"""Semantic segmentation: cross-entropy of every labelled pixel, mIoU over the whole set."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.evaluate.dense_metrics import (
    confusion_matrix,
    own_classes,
    segmentation_scores,
)
from adaperceiver_jax.losses.once_for_all import weighted_mean
from adaperceiver_jax.losses.segmentation import IGNORE, pixel_cross_entropy
from adaperceiver_jax.models.upsample import by_bands, from_bands
from adaperceiver_jax.tasks.dense import Dense
from adaperceiver_jax.train.task import Batch, SubNetwork, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Dense):
    """Label maps (B, H, W), in which 255 does not count."""

    metric = "miou"
    inputs = ("image", "segmentation")

    @property
    def num_classes(self) -> int:
        return self.model.config.num_classes

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        """Also how many pixels an image of the batch has labelled, in the mean: of parts of the
        batch, the losses then add up to the whole batch's."""
        labels = batch["segmentation"].astype(jnp.int32)
        pixels = (labels != IGNORE).sum().astype(jnp.float32) / len(labels)
        samples = {"images": self.images.normalise(batch["image"]), "labels": labels}
        return samples, {"pixels": pixels}

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over the batch's labelled pixels and the granularities; 0 if none is labelled.

        Logits at the images' size are made and scored a band of rows at a time.
        """
        images, labels = samples["images"], samples["labels"]
        height, width = labels.shape[1:]

        def read(maps: jax.Array) -> jax.Array:
            def score(logits: jax.Array, labels: jax.Array) -> jax.Array:
                return pixel_cross_entropy(logits, labels).sum()

            return by_bands(score, maps, height, width, labels).sum()

        totals = self.read_all(params, images, read, key)
        pixels = shared["pixels"] * len(images)
        losses = jnp.where(pixels > 0, totals / jnp.maximum(pixels, 1e-6), 0)
        loss = weighted_mean(losses, np.ones(len(losses), np.float32))
        return loss, {"token": loss}

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> dict[str, jax.Array]:
        return self.score(self.maps(params, batch["image"], sub_network), batch)

    def score(self, maps: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Each image's confusion matrix, and the sum of its pixels' cross-entropy."""
        labels = batch["segmentation"].astype(jnp.int32)

        def score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            return logits.argmax(-1), pixel_cross_entropy(logits, labels).sum((-2, -1))

        height, width = labels.shape[1:]
        predicted, loss = by_bands(score, maps, height, width, labels)
        return {
            "confusion": confusion_matrix(from_bands(predicted), labels, self.num_classes),
            "loss": loss.sum(0),
        }

    def score_own(self, maps: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The confusion matrix at each label map's own size: 'own_segmentation', padded by 255, and
        'own_size'."""
        labels = batch["own_segmentation"].astype(jnp.int32)
        _, height, width = labels.shape
        predicted = own_classes(maps, batch["own_size"], (height, width))
        return {"confusion": confusion_matrix(predicted, labels, self.num_classes)}

    def summarise(self, sums: Sums) -> dict[str, float]:
        """ValueError if the validation images have no labelled pixel."""
        confusion = sums["confusion"]
        scores = segmentation_scores(confusion)
        if "loss" in sums:
            scores["loss"] = float(sums["loss"]) / float(confusion.sum())
        return scores
