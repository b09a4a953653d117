"""Cross-entropy of class logits."""

from __future__ import annotations

import chex
import jax


def soft_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch for logits (..., B, C) against soft labels (B, C) -> (...)."""
    chex.assert_rank(labels, 2)
    chex.assert_equal_shape_suffix([logits, labels], 2)
    return -(labels * jax.nn.log_softmax(logits)).sum(axis=-1).mean(axis=-1)
