"""Cross-entropy of label maps."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

IGNORE = 255
"""Label of pixels that do not count."""


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits (..., B, H, W, C) and labels (B, H, W) -> (..., B, H, W); 0 where the label is 255."""
    chex.assert_rank(labels, 3)
    chex.assert_shape(logits, (..., *labels.shape, None))
    valid = labels != IGNORE
    picked = jnp.where(valid, labels, 0)[..., None]
    # a sum over classes, not a gather, whose gradient accelerators would scatter
    of_label = jnp.where(jnp.arange(logits.shape[-1]) == picked, logits, 0).sum(axis=-1)
    return jnp.where(valid, jax.nn.logsumexp(logits, axis=-1) - of_label, 0)
