"""From pixels to what a model sees."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How pixels (0 to 255) become the model's input: (pixels / 255 - mean) / std."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def normalise(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) uint8 -> float32."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std
