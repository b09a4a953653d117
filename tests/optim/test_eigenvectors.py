"""Eigendecompositions on the hosts, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.optim import eigenvectors
from adaperceiver_jax.optim.soap import Soap
from adaperceiver_jax.optim.stacks import first_axis

SHAPES = {"blocks": {"w": (3, 16, 24), "b": (3, 16)}, "w": (1030, 16), "v": (16,), "s": ()}
PARAMS = jax.tree.map(np.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def random_state(parts: Soap):
    """A state whose factors are random."""
    rng, factors = np.random.default_rng(0), {}
    for stack in parts._stacks(PARAMS).all:
        factors[stack.name] = group = []
        for held, m in zip(stack.held, stack.size, strict=True):
            full = np.zeros((stack.slots, held, held), np.float32)
            g = rng.standard_normal((stack.rows, m, m + 3)).astype(np.float32)
            full[: stack.rows, :m, :m] = g @ g.swapaxes(-1, -2)
            group.append(full)
    factors = {name: tuple(group) for name, group in factors.items()}
    return jax.eval_shape(parts.init, PARAMS)._replace(steps=np.int32(7), factors=factors)


def on_mesh(shape, whole: bool) -> tuple[Soap, object]:
    """SOAP and a state on 8 devices, its stacks dealt out, or all of it on each."""
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    parts = Soap(b2=0.9, max_preconditioner_dim=1030, mesh=mesh)
    state = random_state(parts)

    def place(x):
        return jax.device_put(x, NamedSharding(mesh, P() if whole else first_axis(x.shape, mesh)))

    return parts, state._replace(factors=jax.tree.map(place, state.factors))


@pytest.fixture(scope="module")
def alone():
    """What one device gives."""
    parts = Soap(b2=0.9, max_preconditioner_dim=1030)
    state = random_state(parts)
    factors = jax.device_put(state.factors, jax.devices()[0])
    return parts.begin_refresh(state._replace(factors=factors), PARAMS).result()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "whole"), [((2, 4), False), ((1, 8), False), ((2, 4), True)])
def test_eight_devices_give_what_one_gives(alone, shape, whole, monkeypatch):
    """To the bit, each matrix decomposed once and never gathered whole on all devices, the result
    sharded as the old eigenvectors."""
    parts, state = on_mesh(shape, whole)
    large = state.factors["1_of_1030x16"][0]
    deal, back = eigenvectors._programs(large.sharding, large.shape, 3)
    dealt = jax.ShapeDtypeStruct((8, 1280, 1280), np.float32, sharding=deal(large).sharding)
    for program, moved in ((deal, large), (back, dealt)):
        assert whole or "all-gather" not in program.lower(moved).compile().as_text()
    calls, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda x: (calls.append(len(x)), eigh(x))[1])
    new = parts.begin_refresh(state, PARAMS).result()
    # a number; vectors, and a side of the large block; 'w' below 'blocks', merged; its other side
    assert sorted(calls) == [1] + [16] * 5 + [384] * 3 + [1030]
    for name in alone:
        for a, b, old in zip(new[name], alone[name], state.factors[name], strict=True):
            assert (a.sharding, a.shape) == (old.sharding, old.shape)
            np.testing.assert_array_equal(np.asarray(a)[: len(b)], np.asarray(b))
            assert not np.asarray(a)[len(b) :].any()


def observed(grads: dict) -> tuple[Soap, object]:
    parts = Soap(b2=0.5, max_preconditioner_dim=8)
    state = parts.init(grads)
    for _ in range(2):
        state = jax.jit(parts.observe)(grads, state)
    return parts, state


def test_host_and_program_agree_and_large_matrices_are_as_small_ones(monkeypatch):
    """That they are right is shown in test_soap."""
    rng = np.random.default_rng(0)
    grads = {"blocks": {"w": rng.standard_normal((2, 4, 5)).astype(np.float32)}}
    parts, state = observed(grads)
    host, graph = parts.begin_refresh(state, grads).result(), jax.jit(parts.refresh)(state, grads)
    ours, theirs = host["2_of_4x5"][0], graph.eigenvectors["2_of_4x5"][0]
    np.testing.assert_allclose(abs(ours), abs(theirs), rtol=0, atol=1e-5)
    monkeypatch.setattr(eigenvectors, "LARGE", 5)  # the large ones are done one after another
    again = parts.begin_refresh(state, grads).result()
    jax.tree.map(np.testing.assert_array_equal, again, host)


def test_what_a_refresh_was_begun_with_may_be_gone_when_it_ends():
    """The factors are donated to the next step."""
    grads = {"w": jnp.eye(4)}
    parts, state = observed(grads)
    before = np.asarray(state.eigenvectors["1_of_4x4"][0])
    want = parts.begin_refresh(state, grads).result()
    np.testing.assert_array_equal(state.eigenvectors["1_of_4x4"][0], before)
    begun = parts.begin_refresh(state, grads)
    jax.tree.map(lambda x: x.delete(), state.factors)
    np.testing.assert_array_equal(begun.result()["1_of_4x4"][0], want["1_of_4x4"][0])


def test_a_factor_that_is_not_finite_is_named():
    for bad in (np.nan, np.inf):
        blocks = np.stack([np.eye(4, 5, dtype=np.float32)] * 2)
        blocks[1, 2, 2] = bad
        grads = {"head": {"w": blocks[0]}, "blocks": {"ffn": {"w": blocks}}}
        parts, state = observed(grads)
        with pytest.raises(FloatingPointError, match="blocks/ffn/w: a factor of its gradients"):
            parts.begin_refresh(state, grads).result()


@pytest.mark.slow
def test_it_is_named_wherever_it_lies():
    parts, state = on_mesh((2, 4), whole=False)
    vectors = state.factors["4_of_16"][0].at[3].set(np.nan)
    state = state._replace(factors={**state.factors, "4_of_16": (vectors,)})
    with pytest.raises(FloatingPointError, match=r"^v: a factor"):
        parts.begin_refresh(state, PARAMS).result()
