"""How right depth maps are, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

POOLED = "rmse_pixels"
"""The root of the mean over all pixels of all images at once, as the reference measures it."""
ERRORS = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
IMAGES, _PIXELS, _SQUARED = "images", "pixels", "squared"
"""The sum that says how many images had a pixel that counts."""
EIGEN = "eigen_"
"""Begins the names of what is measured within the Eigen crop."""
_NYU, _ROWS, _COLUMNS = (480, 640), (45, 471), (41, 601)


def eigen_crop(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the part of an NYUv2 image that Eigen et al. (2014) compare.

    Rows 45 to 470 and columns 41 to 600 of 480 x 640; of another size, the same part of it.
    """
    inside = np.zeros((height, width), bool)
    top, bottom = (round(edge * height / _NYU[0]) for edge in _ROWS)
    left, right = (round(edge * width / _NYU[1]) for edge in _COLUMNS)
    inside[top:bottom, left:right] = True
    return inside


def eigen_crops(sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """`eigen_crop` of images of several sizes (B, 2), padded to one shape -> (B, *shape) bool."""

    def inside(side: int, edges: tuple[int, int], axis: int) -> jax.Array:
        # half to even, as Python's round does
        first, end = (jnp.round(edge * sizes[:, axis] / _NYU[axis]) for edge in edges)
        place = jnp.arange(side)
        return (place >= first[:, None]) & (place < end[:, None])

    rows, columns = inside(shape[0], _ROWS, 0), inside(shape[1], _COLUMNS, 1)
    return rows[:, :, None] & columns[:, None, :]


def depth_errors(predicted: jax.Array, depth: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """Of each image the `ERRORS` over its valid pixels, whether it has any (`IMAGES`), and what
    `POOLED` needs.

    Depth (B, H, W) in metres, `valid` (B, H, W) bool -> (B,) each; 0 of images without one.
    """
    ours, true = (jnp.where(valid, x.astype(jnp.float32), 1.0) for x in (predicted, depth))
    ratio = jnp.maximum(ours / true, true / ours)
    count = valid.sum((-2, -1))
    squared = jnp.square(ours - true)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(valid, x, 0).sum((-2, -1)) / jnp.maximum(count, 1)

    return {
        "rmse": jnp.sqrt(mean(squared)),
        "abs_rel": mean(jnp.abs(ours - true) / true),
        "log10": mean(jnp.abs(jnp.log10(ours) - jnp.log10(true))),
        **{f"delta{k}": mean(ratio < 1.25**k) for k in (1, 2, 3)},
        IMAGES: (count > 0).astype(jnp.int32),
        _PIXELS: count.astype(jnp.int32),
        _SQUARED: jnp.where(valid, squared, 0).sum((-2, -1)),
    }


def depth_scores(sums: Mapping[str, np.ndarray | float], eigen: bool = False) -> dict[str, float]:
    """The mean of each image's `ERRORS` over the images that have any, and `POOLED`, from sums.

    ValueError if there are none. With `eigen` the names say that the crop was taken.
    """
    images = float(sums[IMAGES])
    if not images:
        raise ValueError(
            "no pixel of these depth maps counts: none is above 0 and within the range"
        )
    scores = {name: float(sums[name]) / images for name in ERRORS}
    scores[POOLED] = math.sqrt(float(sums[_SQUARED]) / float(sums[_PIXELS]))
    return {f"{EIGEN if eigen else ''}{name}": value for name, value in scores.items()}
