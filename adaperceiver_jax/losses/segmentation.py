"""Cross-entropy of label maps."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

IGNORE = 255


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array, ignore: int = IGNORE) -> jax.Array:
    """Logits (..., C) and labels (...) -> (...) per pixel; 0 where the label is `ignore`."""
    valid = labels != ignore
    picked = jnp.where(valid, labels, 0)[..., None]
    # a sum over classes, not a gather, whose gradient accelerators would scatter
    of_label = jnp.where(jnp.arange(logits.shape[-1]) == picked, logits, 0).sum(axis=-1)
    return jnp.where(valid, jax.nn.logsumexp(logits, axis=-1) - of_label, 0)


def segmentation_cross_entropy(
    logits: jax.Array, labels: jax.Array, ignore: int = IGNORE
) -> jax.Array:
    """Mean over the labelled pixels, logits (..., B, H, W, C) and labels (B, H, W) -> (...).

    Pixels labelled `ignore` do not count; with none left the loss is 0.
    """
    chex.assert_rank(labels, 3)
    chex.assert_equal_shape_suffix([logits[..., 0], labels], 3)
    total = pixel_cross_entropy(logits, labels, ignore).sum(axis=(-3, -2, -1))
    return total / jnp.maximum((labels != ignore).sum(), 1)
