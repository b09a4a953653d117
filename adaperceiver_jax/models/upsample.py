"""Bilinear resizing of maps, half-pixel centres, edges repeated, no antialiasing.

By a whole factor every output is a weighted sum of three neighbours, with the same weights in each
cell: three multiply-adds, not a product with a matrix. And a band of rows can be had on its own, so
that class maps at an image's size are never in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """(..., h, w, C) -> (..., height, width, C), to any size."""
    h, w = x.shape[-3:-1]
    if height % h == 0 and width % w == 0:
        return _taps(_taps(x, width // w, -2), height // h, -3)
    shape = (*x.shape[:-3], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def by_bands(
    function: Callable[..., T], maps: jax.Array, height: int, width: int, *others: jax.Array
) -> T:
    """`function` of one band of rows of the resized maps after another.

    Args:
      function: takes (B, r, width, C), a band of the resized maps, and the same rows of `others`;
        gives arrays.
      maps: (B, h, w, C); height and width are multiples of h and w.
      others: (B, height, width, ...) each.

    Returns its h results stacked, (h, ...). Nothing of a band is kept for the backward pass.
    """
    rows, columns = maps.shape[1:3]
    if height % rows or width % columns:
        raise ValueError(
            f"height={height}, width={width}: must be multiples of the maps' {rows} x {columns}"
        )
    factor = height // rows
    weights = _weights(factor)
    wide = _edged(_taps(maps, width // columns, -2), 1)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], rows, factor, *x.shape[2:]), 1, 0)

    def band(i: jax.Array, parts: tuple[jax.Array, ...]) -> T:
        near = jax.lax.dynamic_slice_in_dim(wide, i, 3, axis=1)  # (B, 3, width, C)
        # (B, factor, width, C)
        rows_of_it = sum(near[:, k, None] * weights[:, k, None, None] for k in range(3))
        return function(rows_of_it, *parts)

    step = jax.checkpoint(band, prevent_cse=False)
    each = (jnp.arange(rows), tuple(cut(x) for x in others))
    return jax.lax.map(lambda part: step(*part), each)


def from_bands(bands: jax.Array) -> jax.Array:
    """(h, B, r, ...), what `by_bands` gives of a function of pixels -> (B, h r, ...)."""
    x = jnp.moveaxis(bands, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def sample_bilinear(
    x: jax.Array, size: jax.Array, rows: int | jax.Array, columns: int | jax.Array
) -> jax.Array:
    """Some rows and columns of a map (h, w, C) resized to a size that only the run knows.

    Args:
      size: (2,) height and width, may be traced.
      rows, columns: (r,), (c,) which; those beyond the size repeat its edge.

    Returns (r, c, C).
    """

    def along(x: jax.Array, new: jax.Array, wanted: int | jax.Array, axis: int) -> jax.Array:
        old = x.shape[axis]
        centre = jnp.clip((wanted + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = jnp.floor(centre).astype(jnp.int32)
        high = jnp.minimum(low + 1, old - 1)
        share = jnp.expand_dims(centre - low, tuple(range(1, x.ndim - axis)))
        return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share

    return along(along(x, size[0], rows, 0), size[1], columns, 1)  # few rows of a band first


def _weights(factor: int) -> np.ndarray:
    """(factor, 3): of the cell before, the cell itself and the one after, for each place in it."""
    place = (np.arange(factor) + 0.5) / factor - 0.5
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.array([-1, 0, 1])))
    return weights.astype(np.float32)


def _edged(x: jax.Array, axis: int) -> jax.Array:
    """With its first and last entry once more."""
    count = x.shape[axis]
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, count - 1))
    return jnp.concatenate([first, x, last], axis)


def _taps(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """An axis, made `factor` times as long."""
    if factor == 1:
        return x
    axis %= x.ndim
    count, weights = x.shape[axis], _weights(factor)
    edged = _edged(x, axis)
    shape = [1] * (x.ndim + 1)
    shape[axis + 1] = factor
    taps = (
        jnp.expand_dims(jax.lax.slice_in_dim(edged, k, k + count, axis=axis), axis + 1)
        * weights[:, k].reshape(shape)
        for k in range(3)
    )
    first, second, third = taps
    y = first + second + third
    return y.reshape(*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
