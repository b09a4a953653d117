"""Metrics of class maps and depth maps, and predictions at the size of each image's own map."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.losses.segmentation import IGNORE
from adaperceiver_jax.models.upsample import sample_bilinear

POOLED = "rmse_pixels"
"""The root of the mean over all pixels of all images at once, as the reference measures it."""
ERRORS = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
IMAGES, _PIXELS, _SQUARED = "images", "pixels", "squared"
"""Sums next to `ERRORS`; IMAGES counts the images that have a valid pixel."""
EIGEN = "eigen_"
"""Begins the names of errors within the Eigen crop."""
_NYU, _ROWS, _COLUMNS = (480, 640), (45, 471), (41, 601)
BAND = 16
"""Rows of class scores that are in memory at once: at a photo's size 150 classes take 7 GB."""


def confusion_matrix(
    predicted: jax.Array, labels: jax.Array, num_classes: int, ignore: int = IGNORE
) -> jax.Array:
    """Counts of pixels by true (rows) and predicted (columns) class, per image.

    Class maps (B, H, W), both of whole numbers -> (B, classes, classes) int32. Pixels labelled
    `ignore` are left out. Whole numbers add up exactly in any order, over devices and processes.
    """
    labels = labels.astype(jnp.int32)
    cell = labels * num_classes + predicted.astype(jnp.int32)
    cell = jnp.where(labels == ignore, num_classes**2, cell)

    def count(cells: jax.Array) -> jax.Array:
        counts = jnp.bincount(cells.reshape(-1), length=num_classes**2 + 1)[:-1]
        return counts.reshape(num_classes, num_classes).astype(jnp.int32)

    return jax.vmap(count)(cell)


def segmentation_scores(confusion: np.ndarray) -> dict[str, float]:
    """'miou', 'mean_accuracy' and 'accuracy' (of pixels) from a whole set's counts (C, C).

    The mean IoU is over the classes that are labelled or predicted anywhere, the mean accuracy over
    those that are labelled. ValueError if no pixel is labelled.
    """
    counts = np.asarray(confusion, np.int64)
    if not counts.sum():
        raise ValueError("no pixel of these label maps counts: all are ignored")
    right, true, said = np.diag(counts), counts.sum(1), counts.sum(0)
    union = true + said - right
    return {
        "miou": float((right[union > 0] / union[union > 0]).mean()),
        "mean_accuracy": float((right[true > 0] / true[true > 0]).mean()),
        "accuracy": float(right.sum() / counts.sum()),
    }


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
    """`ERRORS` of each image over its valid pixels, 1 in `IMAGES` if it has any, and what `POOLED`
    needs.

    Depth (B, H, W) in metres, `valid` (B, H, W) bool -> (B,) each; 0 for images without one.
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


def own_classes(maps: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Class scores (B, h, w, classes), resized to each image's own size -> classes (B, *shape).

    sizes (B, 2): heights and widths, at most `shape`, whose height is a multiple of BAND; they may
    be traced, so that images of many sizes share a program. Beyond an image's size the edge is
    repeated.
    """
    height, width = shape

    def of_image(maps: jax.Array, size: jax.Array) -> jax.Array:
        def band(first: jax.Array) -> jax.Array:
            rows = first + jnp.arange(BAND)
            return sample_bilinear(maps, size, rows, jnp.arange(width)).argmax(-1)

        return jax.lax.map(band, jnp.arange(0, height, BAND)).reshape(height, width)

    return jax.lax.map(lambda image: of_image(*image), (maps, sizes))


def own_depth(maps: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Depth maps (B, h, w, 1), resized to each image's own size -> (B, *shape); sizes as above."""
    rows, columns = (jnp.arange(side) for side in shape)
    resized = jax.vmap(lambda x, size: sample_bilinear(x, size, rows, columns))(maps, sizes)
    return resized[..., 0]
