"""What chips send to each other: kinds, sizes, and the axes of the mesh."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.aot.chips import find_topology
from adaperceiver_jax.aot.collectives import Collective, collectives
from adaperceiver_jax.aot.hlo import parse
from adaperceiver_jax.aot.loops import visits
from tests.aot.texts import LOOP, around, entry

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
MESH = (("data", 4), ("fsdp", 2))
ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 2, 4, 6), (1, 3, 5, 7))


def found(text: str, chips: int = 8) -> list[Collective]:
    module = parse(text)
    return list(collectives(module, list(visits(module)), chips))


def gathered(groups: str) -> Collective:
    (only,) = found(
        entry(
            "%x = f32[4,8]{1,0} parameter(0)",
            f"%g = f32[8,8]{{1,0}} all-gather(%x), channel_id=1, replica_groups={groups}, "
            "dimensions={0}, use_global_device_ids=true",
        )
    )
    return only


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ROWS, "fsdp"),
        ("[4,2]<=[8]", ROWS, "fsdp"),
        ("[2,4]<=[4,2]T(1,0)", COLUMNS, "data"),
        ("[1,8]<=[8]", (tuple(range(8)),), "data+fsdp"),
        ("{}", (tuple(range(8)),), "data+fsdp"),
        ("mesh['axis_0'=8] {'axis_0'}", (tuple(range(8)),), "data+fsdp"),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ROWS, "fsdp"),
        ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=1] {'axis_0','axis_2'}", COLUMNS, "data"),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", COLUMNS, "data"),
        ("mesh['a'=4,'b'=2] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7)), "part of data"),
        ("mesh['a'=4,'b'=2] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7)), "part of data"),
        ("[8,1]<=[8]", tuple((i,) for i in range(8)), "none"),
    ],
)
def test_groups_are_read_however_they_are_written(text, groups, axes):
    collective = gathered(text)
    assert collective.groups == groups
    assert collective.axes(MESH) == axes


def test_a_group_of_two_of_four_is_a_part_of_its_axis():
    assert gathered("{{0,2},{4,6},{1,3},{5,7}}").axes(MESH) == "part of data"


def test_what_is_gathered_counts_whole_and_what_is_reduced_as_it_is():
    collective = gathered("[4,2]<=[8]")
    assert (collective.kind, collective.bytes, collective.dtype) == ("all-gather", 4 * 64, "f32")
    (reduced,) = found(
        entry(
            "%x = bf16[4,8]{1,0} parameter(0)",
            "%y = f32[3]{0} parameter(1)",
            "%g = (bf16[4,8]{1,0}, f32[3]{0}) all-reduce(%x, %y), replica_groups=[1,8]<=[8], "
            "to_apply=%add",
        )
    )
    assert (reduced.bytes, reduced.dtype, reduced.size) == (2 * 32 + 4 * 3, "bf16+f32", 8)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all-gather", 7 / 8),
        ("reduce-scatter", 7 / 8),
        ("all-reduce", 7 / 4),
        ("all-to-all", 1.0),
        ("collective-permute", 1.0),
    ],
)
def test_a_ring_sends_each_kind_its_own_part(kind, expected):
    module = parse(entry("%x = f32[32]{0} parameter(0)", "%y = f32[32]{0} copy(%x)"))
    x = module.entry.instructions["x"]
    groups = (tuple(range(8)),)
    collective = Collective(kind, x.arrays, groups, 1, module.entry, x, "")
    assert collective.sent() == expected * 4 * 32


def test_one_that_runs_beside_other_work_counts_once():
    started = """\
%started (a: f32[4]) -> (f32[4], f32[8]) {
  %a = f32[4]{0} parameter(0)
  %g.0 = f32[8]{0} all-gather(%a), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %s = (f32[4]{0}, f32[8]{0}) custom-call(%g.0), custom_call_target="AsyncCollectiveStart"
}

%beside (b: f32[4], c: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %c = f32[4]{0} parameter(1)
  %g.1 = f32[8]{0} all-gather(%b), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %m = f32[4]{0} multiply(%c, %c)
}

%done (d: f32[4]) -> f32[8] {
  %d = f32[4]{0} parameter(0)
  %g.2 = f32[8]{0} all-gather(%d), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %e = f32[8]{0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}
"""
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%start = (f32[4]{0}, f32[8]{0}) fusion(%x), kind=kCustom, calls=%started",
        "%work = f32[4]{0} fusion(%x, %x), kind=kLoop, calls=%beside",
        "%p = (f32[4]{0}, f32[4]{0}, u32[]) collective-permute-start(%work), "
        "source_target_pairs={{0,1},{1,0}}",
        "%q = f32[4]{0} collective-permute-done(%p)",
        "%end = f32[8]{0} fusion(%x), kind=kCustom, calls=%done",
        before=started,
    )
    assert [(c.kind, c.bytes) for c in found(text)] == [
        ("all-gather", 32),
        ("collective-permute", 16),
    ]


def test_a_sum_that_is_cut_at_once_is_a_scatter():
    scattered = """\
%scattered (a: f32[8]) -> f32[4] {
  %a = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%a), channel_id=5, replica_groups=[4,2]<=[8], to_apply=%add
  %i = s32[] constant(0)
  ROOT %s = f32[4]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={4}
}
"""
    text = entry(
        "%x = f32[8]{0} parameter(0)",
        "%y = f32[4]{0} fusion(%x), kind=kCustom, calls=%scattered",
        before=scattered,
    )
    assert [(c.kind, c.bytes) for c in found(text)] == [("reduce-scatter", 32)]


def test_what_fills_a_sum_up_to_equal_parts_is_not_of_its_numbers():
    text = entry(
        "%x = f32[6]{0} parameter(0)",
        "%y = f32[4]{0} parameter(1)",
        "%zero = f32[] constant(0)",
        "%padded = f32[8]{0} pad(%x, %zero), padding=0_2",
        "%r = (f32[8]{0}, f32[4]{0}) all-reduce(%padded, %y), channel_id=5, "
        "replica_groups=[1,8]<=[8], to_apply=%add",
    )
    [summed] = found(text)
    assert (summed.bytes, summed.numbers, summed.filled) == (48, 10, 2)


def test_in_a_loop_it_counts_every_round():
    text = LOOP.replace(
        "%twice = f32[8,128]{1,0:T(8,128)} add(%x.1, %x.1)",
        "%twice = f32[8,128]{1,0:T(8,128)} all-reduce(%x.1), replica_groups=[1,8]<=[8]",
    )
    assert [c.times for c in found(text)] == [21]


def test_a_sum_that_goes_around_while_it_is_computed_is_a_reduction():
    """Five permutations of a quarter, the first two of zeros, are one array reduced over four."""
    found_here = found(around("add"), 4)
    assert [(c.kind, c.times) for c in found_here] == [("collective-permute", 4)] * 2
    assert all(c.adds and c.reduces for c in found_here)
    assert sum(c.times * c.numbers for c in found_here) == pytest.approx(8 * (8 * 128) * 4 / 5)
    assert [c.share for c in found_here] == [4 / 5, 4 / 5]


@pytest.mark.parametrize("taker", ["convolution", "multiply", "maximum"])
def test_what_goes_around_to_be_multiplied_is_gathered(taker):
    assert not any(c.adds or c.reduces for c in found(around(taker), 4))


def test_one_that_waits_for_data_says_so():
    text = LOOP.replace(
        "%twice = f32[8,128]{1,0:T(8,128)} add(%x.1, %x.1)",
        "%twice = f32[8,128]{1,0:T(8,128)} all-reduce(%x.1), replica_groups=[1,8]<=[8]",
    )
    assert [c.waits for c in found(text)] == [False]
    text = text.replace("%next = s32[]{:T(128)} add", "%next = s32[]{:T(128)} multiply")
    assert [(c.times, c.waits) for c in found(text)] == [(1, True)]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_products_that_a_tpu_sums_around_its_chips_are_reduced_once():
    """A gradient of columns dealt to 8 chips: the weights go around, and the gradient's parts."""
    devices = np.array(find_topology("v5e:4x2").devices)
    mesh = jax.sharding.Mesh(devices, ("fsdp",))

    def shape(rows, columns, *axes):
        place = NamedSharding(mesh, P(*axes))
        return jax.ShapeDtypeStruct((rows, columns), jnp.bfloat16, sharding=place)

    weights = shape(4096, 4096, None, "fsdp")
    step = jax.jit(
        jax.grad(lambda w, x: jnp.sum((x @ w).astype(jnp.float32) ** 2)),
        out_shardings=weights.sharding,
    )
    text = step.lower(weights, shape(32768, 4096, "fsdp")).compile().as_text()
    reduced = [c for c in found(text) if c.reduces]
    assert {c.kind for c in reduced} == {"collective-permute"}
    assert sum(c.times * c.numbers for c in reduced) == pytest.approx(4096**2)
    moved = sum(c.times * c.numbers for c in found(text) if not c.reduces)
    assert moved == pytest.approx(4096**2 * 9 / 8)


def test_what_this_jax_compiles_is_read():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))

    def place(*axes):
        return NamedSharding(mesh, P(*axes))

    places = place("data", "fsdp"), place("fsdp")
    step = jax.jit(jnp.matmul, in_shardings=places, out_shardings=place("data"))
    compiled = step.lower(jnp.ones((8, 4)), jnp.ones((4, 6))).compile()
    (only,) = found(compiled.as_text(), 4)
    assert (only.kind, only.axes((("data", 2), ("fsdp", 2)))) == ("all-reduce", "fsdp")
    assert only.bytes == 4 * 4 * 6
