"""Resizing of maps: whole, by bands of rows, and to sizes that only the run knows."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.models.upsample import by_bands, from_bands, resize_bilinear, sample_bilinear
from tests.models.test_dense import bilinear

CLOSE = dict(rtol=1e-5, atol=1e-5)
MAPS = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
SIZES = [(3, 5), (12, 20), (7, 9), (1, 1), (12, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_whole_maps_and_a_part_of_them_at_a_traced_size(size):
    want = bilinear(MAPS, *size)
    np.testing.assert_allclose(resize_bilinear(MAPS, *size), want, **CLOSE)
    rows, columns = np.arange(0, size[0], 2), np.arange(size[1])

    @jax.jit
    def some(size):
        return sample_bilinear(MAPS[0], size, rows, columns)

    np.testing.assert_allclose(some(np.array(size)), want[0, ::2], **CLOSE)


def test_beyond_the_size_the_edge_is_repeated():
    got = np.asarray(sample_bilinear(MAPS[0], np.array([6, 7]), np.arange(9), np.arange(8)))
    np.testing.assert_array_equal(got[6:], np.broadcast_to(got[5], (3, 8, 4)))
    np.testing.assert_array_equal(got[:, 7], got[:, 6])


@pytest.mark.parametrize("size", [(3, 20), (42, 35)])
def test_bands_are_the_whole_and_have_its_gradient(size):
    others = np.random.default_rng(1).standard_normal((2, *size)).astype(np.float32)

    @jax.jit
    def banded(maps):
        return from_bands(by_bands(lambda m, o: jnp.tanh(m) * o[..., None], maps, *size, others))

    def whole(maps):
        return jnp.tanh(resize_bilinear(maps, *size)) * others[..., None]

    np.testing.assert_allclose(banded(MAPS), whole(MAPS), **CLOSE)
    weights = np.random.default_rng(2).standard_normal((2, *size, 4)).astype(np.float32)
    ours, want = (jax.grad(lambda m, f=f: (f(m) * weights).sum())(MAPS) for f in (banded, whole))
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-4)


def largest_array(function, *arguments) -> int:
    """Entries of the largest array of a compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_no_more_than_bands_is_ever_in_memory_and_they_need_whole_factors():
    """Neither forward nor backward; the whole is 14 times the largest array there is."""
    maps, size = jnp.zeros((2, 32, 32, 20)), (512, 512)
    whole = 2 * 512 * 512 * 20

    def banded(maps):
        return by_bands(lambda m: jnp.square(m).sum(), maps, *size).sum()

    def at_once(maps):
        return jnp.square(resize_bilinear(maps, *size)).sum()

    assert largest_array(jax.grad(banded), maps) < whole / 14
    assert largest_array(jax.grad(at_once), maps) >= whole
    with pytest.raises(ValueError, match="height=13, width=20: must be multiples of the maps' 3 x"):
        by_bands(lambda m: m, MAPS, 13, 20)
