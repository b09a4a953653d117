"""Rotary position embedding with interleaved pairs: (0, 1), (2, 3), ... turn together."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Rope:
    """Cosine and sine of every position's angles, each (N, head_dim / 2), float32."""

    cos: jax.Array | np.ndarray
    sin: jax.Array | np.ndarray

    def __getitem__(self, positions: slice) -> Rope:
        return Rope(self.cos[positions], self.sin[positions])


def rope_scale(num_tokens: int, max_latent_tokens: int) -> float:
    """The reference's rule: beyond the trained maximum, positions are squeezed back into it."""
    return max(1.0, num_tokens / max_latent_tokens)


def make_rope(num_tokens: int, head_dim: int, theta: float, scale: float = 1.0) -> Rope:
    """Angles position * theta^(-2i / head_dim) / scale for positions 0..num_tokens-1."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = 1.0 / np.float32(theta) ** exponents / np.float32(scale)
    angles = np.outer(np.arange(num_tokens, dtype=np.float32), frequencies)
    return Rope(np.cos(angles), np.sin(angles))


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """Turns x (..., N, H, head_dim) by its positions, in float32; the dtype stays."""
    chex.assert_shape(rope.cos, (x.shape[-3], x.shape[-1] // 2))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = rope.cos[:, None, :], rope.sin[:, None, :]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def unrotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Turns x (..., N, H, head_dim) backwards: the transpose of `apply_rope`."""
    return apply_rope(x, Rope(rope.cos, -rope.sin))
