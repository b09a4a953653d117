"""Predictions at the size of each image's own map, which differs from image to image.

Maps are padded to a common shape, so that few programs are compiled; their sizes are traced.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adaperceiver_jax.models.upsample import sample_bilinear

BAND = 16
"""Rows of class scores that are in memory at once."""


def own_classes(maps: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Head's maps (B, h, w, classes), resized to each image's own size -> classes (B, *shape).

    sizes (B, 2): heights and widths, at most `shape`, whose height is a multiple of BAND. Beyond an
    image's size the edge is repeated.
    """
    height, width = shape

    def of_image(maps: jax.Array, size: jax.Array) -> jax.Array:
        def band(first: jax.Array) -> jax.Array:
            rows = first + jnp.arange(BAND)
            return sample_bilinear(maps, size, rows, jnp.arange(width)).argmax(-1)

        return jax.lax.map(band, jnp.arange(0, height, BAND)).reshape(height, width)

    return jax.lax.map(lambda image: of_image(*image), (maps, sizes))


def own_depth(maps: jax.Array, sizes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Depth maps (B, h, w, 1), resized to each image's own size -> (B, *shape), likewise."""
    rows, columns = (jnp.arange(side) for side in shape)
    resized = jax.vmap(lambda x, size: sample_bilinear(x, size, rows, columns))(maps, sizes)
    return resized[..., 0]
