"""Depth from one image: scale-invariant and gradient losses, the usual errors image by image."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.evaluate.dense_metrics import (
    EIGEN,
    depth_errors,
    depth_scores,
    eigen_crop,
    eigen_crops,
    own_depth,
)
from adaperceiver_jax.losses.depth import gradient_loss, sig_loss
from adaperceiver_jax.losses.once_for_all import weighted_mean
from adaperceiver_jax.models.upsample import resize_bilinear
from adaperceiver_jax.tasks.dense import Dense
from adaperceiver_jax.train.task import Batch, SubNetwork, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(Dense):
    """Depth maps (B, H, W) in metres, in which 0 does not count."""

    inputs = ("image", "depth")
    num_classes = None

    @property
    def metric(self) -> str:
        return f"-{EIGEN if self.settings.eigen_crop else ''}rmse"

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        samples = {"images": self.images.normalise(batch["image"]), "depth": batch["depth"]}
        return samples, {"warm_up": step < self.settings.warm_up}

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Both losses over the batch's valid pixels, their means over the granularities."""
        depth, s = samples["depth"], self.settings
        most = self.model.config.max_depth

        def read(maps: jax.Array) -> dict[str, jax.Array]:
            predicted = resize_bilinear(maps, *depth.shape[1:])[..., 0]
            return {
                "sig": sig_loss(predicted, depth, shared["warm_up"], most),
                "grad": gradient_loss(predicted, depth, s.reference_axes, most),
            }

        losses = self.read_all(params, samples["images"], read, key)
        weights = np.ones(len(losses["sig"]), np.float32)
        parts = {
            "sig": s.sig_weight * weighted_mean(losses["sig"], weights),
            "grad": s.gradient_weight * weighted_mean(losses["grad"], weights),
        }
        return parts["sig"] + parts["grad"], parts

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> dict[str, jax.Array]:
        return self.score(self.maps(params, batch["image"], sub_network), batch)

    def score(self, maps: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Errors of each image over its valid pixels, within the Eigen crop if so set."""
        depth, valid = batch["depth"], batch["valid"]
        predicted = resize_bilinear(maps, *depth.shape[1:])[..., 0]
        if self.settings.eigen_crop:
            valid = valid & jnp.asarray(eigen_crop(*depth.shape[1:]))
        return depth_errors(predicted, depth, valid)

    def score_own(self, maps: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Same at each depth map's own size: 'own_depth' and 'own_valid', padded, and
        'own_size'."""
        depth, valid, sizes = batch["own_depth"], batch["own_valid"], batch["own_size"]
        _, height, width = depth.shape
        if self.settings.eigen_crop:
            valid = valid & eigen_crops(sizes, (height, width))
        return depth_errors(own_depth(maps, sizes, (height, width)), depth, valid)

    def summarise(self, sums: Sums) -> dict[str, float]:
        """ValueError if the validation images have no valid pixel."""
        return depth_scores(sums, self.settings.eigen_crop)
