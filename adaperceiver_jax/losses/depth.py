"""Scale-invariant and gradient losses of depth maps, on valid pixels only."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

EPSILON = 0.001


def valid_depth(depth: jax.Array, max_depth: float = 10.0) -> jax.Array:
    """Pixels that count: 0 < depth <= max_depth."""
    return (depth > 0) & (depth <= max_depth)


def sig_loss(
    pred: jax.Array,
    depth: jax.Array,
    warm_up: jax.typing.ArrayLike = False,
    max_depth: float = 10.0,
) -> jax.Array:
    """sqrt(var(g) + 0.15 mean(g)^2) with g = log(pred + eps) - log(depth + eps), (B, H, W) -> ().

    The variance is over n - 1; during the warm-up it is left out. Of one pixel it is 0, as the loss
    is of none.
    """
    chex.assert_rank(depth, 3)
    chex.assert_equal_shape([pred, depth])
    valid = valid_depth(depth, max_depth)
    g = jnp.log(jnp.where(valid, pred, 1) + EPSILON) - jnp.log(jnp.where(valid, depth, 1) + EPSILON)
    count = valid.sum()
    mean = jnp.where(valid, g, 0).sum() / jnp.maximum(count, 1)
    variance = jnp.where(valid, (g - mean) ** 2, 0).sum() / jnp.maximum(count - 1, 1)
    squared = jnp.where(warm_up, 0.0, variance) + 0.15 * mean**2
    return jnp.sqrt(jnp.maximum(squared, 1e-12))  # a finite gradient where all is right


def gradient_loss(
    pred: jax.Array, depth: jax.Array, reference_axes: bool = False, max_depth: float = 10.0
) -> jax.Array:
    """Error of the log depths' differences at distance 2, over 4 scales, (B, H, W) -> ().

    The scales take every 1st, 2nd, 4th and 6th pixel. The reference slices the first two axes of
    a (B, 1, H, W) array, batch and channel, so it never looks along the image; with
    `reference_axes` so does this.
    """
    chex.assert_rank(depth, 3)
    chex.assert_equal_shape([pred, depth])
    if reference_axes:
        pred, depth = (jnp.moveaxis(x[:, None], (0, 1), (1, 2)) for x in (pred, depth))
    else:
        pred, depth = pred[..., None], depth[..., None]
    total = jnp.zeros(())
    for stride in (1, 2, 4, 6):  # axes 1 and 2 are the two that are looked along
        p, d = pred[:, ::stride, ::stride], depth[:, ::stride, ::stride]
        valid = valid_depth(d, max_depth)
        g = jnp.log(jnp.where(valid, p, 1) + EPSILON) - jnp.log(jnp.where(valid, d, 1) + EPSILON)
        along = jnp.abs(g[:, :-2] - g[:, 2:]) * (valid[:, :-2] & valid[:, 2:])
        across = jnp.abs(g[:, :, :-2] - g[:, :, 2:]) * (valid[:, :, :-2] & valid[:, :, 2:])
        total += (along.sum() + across.sum()) / jnp.maximum(valid.sum(), 1)
    return total
