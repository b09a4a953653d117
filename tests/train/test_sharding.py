"""The rules by which arrays are laid out on a mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import (
    check_batch,
    describe,
    make_mesh,
    placed,
    tree_shardings,
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_mesh_takes_all_devices(devices):
    for count, data, fsdp, want in (
        (8, -1, 1, (8, 1)),
        (8, -1, 2, (4, 2)),
        (8, 2, -1, (2, 4)),
        (4, 2, 2, (2, 2)),
        (1, -1, 1, (1, 1)),
    ):
        devices(count)
        assert tuple(make_mesh(MeshSettings(data=data, fsdp=fsdp)).shape.values()) == want


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 3), (3, 2), (-1, -1), (0, 8), (-2, 2), (16, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(devices, data, fsdp):
    devices(8)
    with pytest.raises(ValueError, match=f"data={data}, fsdp={fsdp}: must multiply to the 8 dev"):
        make_mesh(MeshSettings(data=data, fsdp=fsdp))


def test_a_batch_that_the_mesh_cannot_split_is_an_error_that_says_what_would_do(devices):
    devices(8)
    mesh = make_mesh(MeshSettings())
    check_batch(16, 2, mesh, "config.batch_size")
    with pytest.raises(ValueError, match=r"config.batch_size=20: .* 8 devices; use 16 or 24"):
        check_batch(20, 1, mesh, "config.batch_size")
    with pytest.raises(ValueError, match=r"=24: .* 8 devices x 2 parts \(accumulate\); use 16 or"):
        check_batch(24, 2, mesh, "config.batch_size")
    with pytest.raises(ValueError, match=r"=4: .* use 8$"):
        check_batch(4, 1, mesh, "config.batch_size")


def test_the_longest_axis_that_divides_is_split_but_never_that_of_the_blocks(devices):
    """Over fsdp; stacks of the optimizer over all devices, and a teacher over none."""
    devices(8)
    mesh = make_mesh(MeshSettings(fsdp=4))
    tree = {
        "longest": shape(8, 16),
        "divides": shape(30, 8),
        "equal": shape(8, 8),
        "small": shape(3),
        "number": shape(),
        "short": shape(2, 3),
        "blocks": {"kernel": shape(64, 8, 3), "bias": shape(64, 3)},
        "opt_state": ({"factors": {"16_of_3": (shape(16, 3, 3),)}},),
        "constants": {"kernel": shape(4096, 4096)},
    }
    specs = jax.tree.map(lambda s: s.spec, tree_shardings(tree, mesh))
    assert specs == {
        "longest": P(None, "fsdp"),
        "divides": P(None, "fsdp"),
        "equal": P(None, "fsdp"),
        "small": P(),
        "number": P(),
        "short": P(),
        "blocks": {"kernel": P(None, "fsdp"), "bias": P()},
        "opt_state": ({"factors": {"16_of_3": (P(("data", "fsdp")),)}},),
        "constants": {"kernel": P()},
    }


def test_a_large_array_that_nothing_divides_is_an_error(devices):
    devices(8)
    mesh = make_mesh(MeshSettings(fsdp=4))
    tree_shardings({"a": shape(1021, 1021)}, mesh)  # just below 4 MiB
    with pytest.raises(ValueError, match=r"a/b \(1025, 1025\): no axis is a multiple of config"):
        tree_shardings({"a": {"b": shape(1025, 1025)}}, mesh)
    with pytest.raises(ValueError, match="no axis is a multiple of the 8 devices"):
        tree_shardings({"opt_state": ({"1_of_1025": shape(1, 1025, 1025)},)}, mesh)
    allowed = tree_shardings({"a": {"b": shape(1025, 1025)}}, mesh, (("a/b", "whole"),))
    assert allowed["a"]["b"].spec == P()
    devices(1)
    tree_shardings({"a": {"b": shape(1025, 1025)}}, make_mesh(MeshSettings()))


def test_the_table_counts_what_a_device_holds(devices):
    devices(8)
    mesh = make_mesh(MeshSettings(fsdp=4))
    tree = {"a": {"b": shape(1024, 1024)}, "c": shape(3)}
    told = describe({"state": placed(tree, tree_shardings(tree, mesh))})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()]
    assert ["state/a/b", "(1024, 1024)", "float32", "1,048,576", "(None, 'fsdp')"] in lines
    assert ["state/c", "(3,)", "float32", "3", "()"] in lines
    assert "Total: 1,048,579 -- 4,194,316 bytes" in told
    assert told.endswith("Each device holds 1,048,588 bytes")
