"""A number per array that tells whether it is still the same, on any mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.train.sharding import by_path

_MULTIPLIERS = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


def _fingerprint(x: jax.Array) -> jax.Array:
    """() uint32: a weighted sum of the array's bits, modulo 2^32.

    Integer sums do not depend on their order, so neither does this on how the array is split.
    Each weight is odd: one changed element always changes the sum.
    """
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        step = np.uint32(_MULTIPLIERS[axis % len(_MULTIPLIERS)] + 2 * axis)
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
    return (bits.astype(jnp.uint32) * (2 * place + 1)).sum(dtype=jnp.uint32)


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_fingerprint(leaf) for leaf in leaves]


def fingerprints(tree: Any) -> dict[str, int]:
    """Path -> fingerprint, for every array of a tree; equal bits, wherever they lie, give equal
    numbers."""
    named = by_path(tree)
    values = jax.device_get(_fingerprints(list(named.values())))
    return {name: int(value) for name, value in zip(named, values, strict=True)}
