"""Eigendecompositions on the hosts, on one device and on eight."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.optim.soap import Soap

ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from adaperceiver_jax.optim import eigenvectors
from adaperceiver_jax.optim.soap import Soap

assert jax.device_count() == 8
parts = Soap(b2=0.9, max_preconditioner_dim=130)
rng = np.random.default_rng(0)
shapes = {"blocks": {"w": (3, 16, 24), "b": (3, 16)}, "w": (130, 16), "v": (16,), "s": ()}
state = parts.init(jax.tree.map(np.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple)))

def factor(x):
    m = x.shape[-2]
    g = rng.standard_normal((*x.shape[:-1], m + 3)).astype(np.float32)
    full = np.zeros(x.shape, np.float32)
    full[..., :m] = g @ g.swapaxes(-1, -2)
    return full

state = state._replace(steps=np.int32(7), factors=jax.tree.map(factor, state.factors))
alone = parts.refresh_on_hosts(jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), state))
calls, eigh = [], np.linalg.eigh
eigenvectors.np.linalg.eigh = lambda x: (calls.append(len(x)), eigh(x))[1]

layouts = [
    ((8, 1), lambda x: P(*(None,) * (x.ndim - 1), "fsdp")),
    ((2, 4), lambda x: P(*(None,) * (x.ndim - 1), "fsdp")),
    ((2, 4), lambda x: P(*(None,) * (x.ndim - 1), ("data", "fsdp"))),
    ((4, 2), lambda x: P(*(None,) * (x.ndim - 2), "fsdp", None)),
    ((2, 4), lambda x: P()),
]
for shape, spec in layouts:
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(x):
        fits = x.ndim > 1 and x.shape[-2] % 8 == 0
        return jax.device_put(x, NamedSharding(mesh, spec(x) if fits else P()))

    sharded = jax.tree.map(place, state)
    factor = sharded.factors["blocks"]["w"][0]
    route = eigenvectors._stack(eigenvectors._routes(factor))
    text = route.lower([factor], np.float32(1)).compile().as_text()
    assert "all-gather" not in text and "collective-permute" not in text
    del calls[:]
    new = parts.refresh_on_hosts(sharded)
    assert sorted(calls) == [1] + [16] * 8 + [24] * 3 + [130], calls
    for a, b, old in zip(*map(jax.tree.leaves, (new, alone, sharded)), strict=True):
        assert a.sharding == old.sharding and a.shape == old.shape, (a.sharding, old.sharding)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    jax.tree.map(np.testing.assert_array_equal, new._replace(eigenvectors=0),
                 jax.tree.map(np.asarray, state)._replace(eigenvectors=0))

bad = sharded._replace(factors={**sharded.factors, "v": (sharded.factors["v"][0] * np.nan,)})
try:
    parts.refresh_on_hosts(bad)
except FloatingPointError as error:
    assert str(error).startswith("v: a factor"), error
    print("equal, and named")
"""


def test_eight_devices_give_what_one_gives():
    """To the bit, each matrix decomposed once and never gathered whole on all devices, the result
    sharded as the old eigenvectors; a factor that is not finite is named wherever it lies."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal, and named"


def observed(grads: dict) -> tuple[Soap, object]:
    parts = Soap(b2=0.5, max_preconditioner_dim=8)
    state = parts.init(grads)
    for _ in range(2):
        state = jax.jit(parts.observe)(grads, state)
    return parts, state


def test_host_and_program_agree_and_are_right():
    rng = np.random.default_rng(0)
    grads = {"blocks": {"w": rng.standard_normal((2, 4, 5)).astype(np.float32)}}
    parts, state = observed(grads)
    host, graph = parts.refresh_on_hosts(state), jax.jit(parts.refresh)(state)
    ours, theirs = host.eigenvectors["blocks"]["w"][0], graph.eigenvectors["blocks"]["w"][0]
    np.testing.assert_allclose(abs(ours), abs(theirs), rtol=0, atol=1e-5)
    for q, g in zip(np.float64(ours), np.float64(grads["blocks"]["w"]), strict=True):
        turned = q.T @ g @ g.T @ q
        np.testing.assert_allclose(turned, np.diag(np.diag(turned)), rtol=0, atol=1e-5)
        assert (np.diff(np.diag(turned)) > 0).all()


def test_the_state_that_is_given_stays_usable():
    parts, state = observed({"w": jnp.eye(4)})
    before = np.asarray(state.eigenvectors["w"][0])
    parts.refresh_on_hosts(state)
    np.testing.assert_array_equal(state.eigenvectors["w"][0], before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_named(bad):
    good = np.eye(4, 5, dtype=np.float32)
    worse = np.stack([good, good])
    worse[1, 2, 2] = bad
    parts, state = observed({"head": {"w": good}, "blocks": {"ffn": {"w": worse}}})
    with pytest.raises(FloatingPointError, match="blocks/ffn/w: a factor of its gradients"):
        parts.refresh_on_hosts(state)
