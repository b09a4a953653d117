"""SOAP's stacks on meshes: what one device has, dealt out and collected, and what it moves."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.optim import stacks as module
from adaperceiver_jax.optim.soap import Soap
from adaperceiver_jax.optim.stacks import Stacks, first_axis
from adaperceiver_jax.train.sharding import tree_shardings
from tests.optim.test_soap import normal

NIGHTLY = pytest.mark.nightly(group="processes")
SHAPES = {
    "blocks": {
        "q": {"kernel": (3, 16, 16), "bias": (3, 16)},
        "fc1": {"kernel": (3, 16, 24)},
        "fc2": {"kernel": (3, 24, 16)},
    },
    "w": {"kernel": (16, 16)},
    "head": {"kernel": (16, 56)},
    "odd": (13,),
    "number": (),
}


@pytest.fixture(autouse=True)
def _large_is_small(monkeypatch):
    """The head, of 16 x 56, is held as 16 x 64, and split within."""
    monkeypatch.setattr(module, "LARGE", 50)
    monkeypatch.setattr(module, "UNIT", 32)


def mesh_of(shape):
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("shape", "heavy", "held"), [(None, 2**20, (64, 16)), ((2, 4), 256, (64, 32))]
)
def test_what_is_dealt_out_is_collected_again(shape, heavy, held, monkeypatch):
    monkeypatch.setattr(module, "HEAVY", heavy)
    mesh = shape and mesh_of(shape)
    params = normal(SHAPES, 0)
    stacks = Stacks(params, 64, mesh)
    dealt = jax.jit(stacks.deal)(params)
    for stack in stacks.all:
        x = dealt[stack.name]
        assert x.shape == (stack.slots, *stack.held)
        assert not np.asarray(x)[stack.rows :].any()
        if mesh:
            assert stack.slots % 8 == 0 or stack.within
            assert x.sharding.is_equivalent_to(
                NamedSharding(mesh, first_axis(x.shape, mesh)), x.ndim
            ), stack.name
    (within,) = (stack for stack in stacks.all if stack.within)
    assert (within.name, within.held) == ("1_of_56x16", held)
    back = jax.jit(stacks.collect)(dealt)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    (squares,) = (stack for stack in stacks.all if stack.size == (16, 16))
    assert stacks.owners(squares) == ["blocks/q/kernel"] * 3 + ["w/kernel"]


def soap_on(mesh):
    """The directions of four steps, the third and fourth in eigenbases, and the programs' texts."""
    parts = Soap(
        b2=0.9,
        start_preconditioning_step=3,
        precondition_frequency=2,
        max_preconditioner_dim=64,
        mesh=mesh,
    )
    params, like, texts = normal(SHAPES, 0), None, []
    state = parts.init(params)
    observe, precondition = jax.jit(parts.observe), jax.jit(parts.precondition)
    if mesh is not None:
        tree = {"opt_state": {"soap": state}, "params": params}
        split = tree_shardings(tree, mesh)
        own, like = split["opt_state"]["soap"], split["params"]
        state = jax.device_put(state, own)
        observe = jax.jit(parts.observe, out_shardings=own)
        precondition = jax.jit(parts.precondition, out_shardings=(like, own))
        placed = jax.device_put(params, like)
        texts = [f.lower(placed, state).compile().as_text() for f in (observe, precondition)]
    found = []
    for number in range(1, 5):
        grads = jax.device_put(normal(SHAPES, number), like)
        state = observe(grads, state)
        if parts.due(number):
            state = state._replace(eigenvectors=parts.begin_refresh(state, params).result())
        direction, state = precondition(grads, state)
        found.append(jax.device_get(direction))
    return found, texts


@pytest.fixture(scope="module")
def alone():
    return soap_on(None)[0]


@pytest.mark.parametrize(
    "shape", [(2, 4), *(pytest.param(shape, marks=NIGHTLY) for shape in ((8, 1), (1, 8)))]
)
def test_directions_are_those_of_one_device(alone, shape):
    """To 2e-4: eigenvectors of factors that are nearly singular come from rounded sums."""
    found, texts = soap_on(mesh_of(shape))
    for ours, theirs in zip(found, alone, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)
    for text in texts:  # gradients and directions are gathered, no rows of zeros, nothing larger
        moved = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
        sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in moved]
        assert max(sizes, default=0) <= 3 * 16 * 24, moved


def test_the_first_axis_that_all_devices_divide_is_split():
    mesh = mesh_of((4, 2))
    assert first_axis((16, 8), mesh) == P(("data", "fsdp"))
    assert first_axis((3, 8), mesh) == P(None, ("data", "fsdp"))
    assert first_axis((3, 5), mesh) == P()
    assert first_axis((), mesh) == P()
