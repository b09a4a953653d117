"""Common parts of all tasks: how pixels become a model's input, and what most leave empty."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.models.params import init_params, scale_kernels
from adaperceiver_jax.train.task import Metrics, SubNetwork, Sums, means


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How pixels (0 to 255) become the model's input: (pixels / 255 - mean) / std."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def normalise(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) uint8 -> float32."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A task with no constants, no memory, no sub-networks, and metrics that are means."""

    model: Any
    """The network that is trained."""
    images: ImageSettings = ImageSettings()
    init_scale: float = 1.0
    """Factor on fresh kernels."""

    def init_params(self, key: jax.Array) -> Any:
        return scale_kernels(init_params(self.model, key), self.init_scale)

    def constants(self) -> dict[str, Any]:
        return {}

    def memory(self) -> dict[str, jax.Array]:
        return {}

    def remember(self, memory: dict[str, jax.Array], metrics: Metrics) -> dict[str, jax.Array]:
        return memory

    def sub_networks(self) -> tuple[SubNetwork | None, ...]:
        return (None,)

    def summarise(self, sums: Sums) -> dict[str, float]:
        return means(sums)
