"""Cross-entropy of label maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

IGNORE = 255


def segmentation_cross_entropy(
    logits: jax.Array, labels: jax.Array, ignore: int = IGNORE
) -> jax.Array:
    """Mean over the labelled pixels, logits (..., B, H, W, C) and labels (B, H, W) -> (...).

    Pixels labelled `ignore` do not count; with none left the loss is 0.
    """
    valid = labels != ignore
    picked = jnp.where(valid, labels, 0)
    log_probs = jax.nn.log_softmax(logits)
    index = jnp.broadcast_to(picked, log_probs.shape[:-1])[..., None]
    nll = -jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
    return jnp.where(valid, nll, 0).sum(axis=(-3, -2, -1)) / jnp.maximum(valid.sum(), 1)
