"""Fingerprints: the same wherever the bits lie, another one as soon as a bit is another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.train.fingerprint import fingerprints
from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import make_mesh


def of(x) -> int:
    return fingerprints({"x": x})["x"]


def test_every_array_has_one_by_its_path():
    tree = {"a": {"b": jnp.ones(3), "c": jnp.ones(3)}, "d": (jnp.zeros(()), jnp.arange(4))}
    assert set(fingerprints(tree)) == {"a/b", "a/c", "d/0", "d/1"}
    assert fingerprints(tree) == fingerprints(jax.tree.map(jnp.copy, tree))
    assert fingerprints({}) == {}


def test_the_mesh_does_not_matter(devices):
    x = jax.random.normal(jax.random.key(0), (8, 16, 4))
    want = of(x)
    for count, fsdp in ((4, 4), (8, 2)):
        devices(count)
        mesh = make_mesh(MeshSettings(fsdp=fsdp))
        for spec in (P(), P("fsdp"), P("data", "fsdp"), P(None, ("data", "fsdp"))):
            assert of(jax.device_put(x, NamedSharding(mesh, spec))) == want


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "uint32"])
def test_any_flipped_bit_changes_it(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)) * 50).astype(dtype)
    want, seen = of(jnp.asarray(x)), set()
    for place in range(x.size):
        for bit in range(8 * x.itemsize):
            flipped = x.copy()
            raw = flipped.reshape(-1).view(np.uint8)
            raw[place * x.itemsize + bit // 8] ^= np.uint8(1 << bit % 8)
            seen.add(of(jnp.asarray(flipped)))
    assert want not in seen


def test_elements_that_change_places_change_it():
    x = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
    want = of(jnp.asarray(x))
    for i, j in itertools.combinations(range(12), 2):
        swapped = x.copy().reshape(-1)
        swapped[[i, j]] = swapped[[j, i]]
        assert of(jnp.asarray(swapped.reshape(x.shape))) != want, (i, j)


def test_nan_and_the_sign_of_zero_are_bits_too():
    assert of(jnp.full(3, jnp.nan)) == of(jnp.full(3, jnp.nan))
    assert of(jnp.zeros(3)) != of(-jnp.zeros(3))
