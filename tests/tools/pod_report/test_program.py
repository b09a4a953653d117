"""A compiled program, counted: work, time, messages between chips, donated memory."""

import itertools
import math

import pytest

from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.chips import CHIPS, Chip
from tools.pod_report.collectives import Collective
from tools.pod_report.hlo import Array
from tools.pod_report.program import Memory, Program, read_program
from tools.pod_report.topology import Layout

pytestmark = pytest.mark.nightly(group="pods")
V5E = CHIPS["v5e"]
AXIS = V5E.ici_bandwidth / 2
"""Bytes a second along one axis of its torus, if that closes in a ring."""
MESH = Layout((("data", 4), ("fsdp", 4)), tuple((x, y, 0) for x in range(4) for y in range(4)))
EIGHT = Layout((("data", 4), ("fsdp", 2)), tuple((x, y, 0) for x in range(4) for y in range(2)))
ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 2, 4, 6), (1, 3, 5, 7))
ALL = (tuple(range(8)),)
WAITS = ("%next = s32[]{:T(128)} add", "%next = s32[] negate")


def read(text: str, layout: Layout = MESH, chip: Chip = V5E) -> Program:
    return read_program("gradients", text, Memory(1, 2, 3, 4), "state", layout, chip)


def matmul(size: int, kind: str = "bf16", attributes: str = "") -> str:
    array = f"{kind}[{size},{size}]{{1,0:T(8,128)}}"
    return entry(
        f"%x = {array} parameter(0)",
        f"%y = {array} convolution(%x, %x), dim_labels=bf_io->bf{attributes}",
    )


def test_a_product_takes_as_long_as_the_peak_or_its_memory_allows():
    large, small = read(matmul(8192)).work, read(matmul(128)).work
    assert large.flops == large.tiled == large.passes == 2 * 8192**3
    assert large.seconds == pytest.approx(large.flops / V5E.flops)
    assert small.hbm == 3 * 2 * 128**2
    assert small.seconds == pytest.approx(small.hbm / V5E.hbm_bandwidth)
    odd = read(matmul(200)).work
    assert (odd.flops, odd.tiled) == (2 * 200**3, 2 * 200 * 256 * 256)  # filled the better way
    exact = read(matmul(8192, "f32", ", operand_precision={highest,highest}")).work
    assert (exact.tiled, exact.passes) == (2 * 8192**3, 12 * 8192**3)
    assert exact.seconds == pytest.approx(exact.passes / V5E.flops)
    again = read(matmul(256, attributes=', metadata={op_name="a/rematted_computation/b"}')).work
    assert (again.again, large.again) == (2 * 256**3, 0)


def test_prefetches_use_the_bandwidth_that_is_left():
    prefetch = (
        "%f = f32[8192,8192]{1,0} parameter(1)",
        "%s = (f32[8192,8192]{1,0:S(1)}, f32[8192,8192]{1,0}, u32[]) copy-start(%f)",
        "%d = f32[8192,8192]{1,0:S(1)} copy-done(%s)",
    )
    x = "%x = bf16[8192,8192]{1,0} parameter(0)"
    product = "%y = bf16[8192,8192]{1,0} convolution(%x, %x), dim_labels=bf_io->bf"
    busy = read(entry(x, *prefetch, product)).work
    assert busy.seconds == pytest.approx(2 * 8192**3 / V5E.flops)
    idle = read(entry(x, *prefetch)).work
    assert idle.seconds == pytest.approx(4 * 8192**2 / V5E.hbm_bandwidth)


def test_loops_count_every_round_and_products_that_wait_for_data_are_named():
    assert read(LOOP).work.hbm == pytest.approx(21 * 3 * 4 * 8 * 128, rel=1e-2)  # and the counter
    assert not read(LOOP).unknown
    assert [loop.name for loop in read(LOOP.replace(*WAITS)).unknown] == ["loop"]
    square = "f32[128,128]{1,0:T(8,128)}"
    text = LOOP.replace("f32[8,128]{1,0:T(8,128)}", square).replace(
        f"{square} add(%x.1, %x.1)", f"{square} convolution(%x.1, %x.1), dim_labels=bf_io->bf"
    )
    assert read(text).work.flops == 21 * 2 * 128**3
    assert (read(text).waiting, read(text.replace(*WAITS)).waiting) == ((), ("twice",))


def gathered(groups: str) -> Collective:
    gather = f"all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    text = entry("%x = f32[4,8]{1,0} parameter(0)", f"%g = f32[8,8]{{1,0}} {gather}")
    (only,) = read(text, EIGHT).sent
    return only


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ROWS, "fsdp"),
        ("[4,2]<=[8]", ROWS, "fsdp"),
        ("[2,4]<=[4,2]T(1,0)", COLUMNS, "data"),
        ("{}", ALL, "data+fsdp"),
        ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=1] {'axis_0','axis_2'}", COLUMNS, "data"),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", COLUMNS, "data"),
        ("mesh['a'=4,'b'=2] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7)), "part of data"),
    ],
)
def test_groups_are_read_however_they_are_written(text, groups, axes):
    collective = gathered(text)
    assert (collective.groups, collective.axes) == (groups, axes)


def test_gathered_arrays_count_whole_and_reduced_ones_as_they_are():
    collective = gathered("[4,2]<=[8]")
    assert (collective.kind, collective.bytes, collective.dtype) == ("all-gather", 4 * 64, "f32")
    text = entry(
        "%x = bf16[6]{0} parameter(0)",
        "%y = f32[4]{0} parameter(1)",
        "%zero = f32[] constant(0)",
        "%padded = bf16[8]{0} pad(%x, %zero), padding=0_2",
        "%r = (bf16[8]{0}, f32[4]{0}) all-reduce(%padded, %y), replica_groups=[1,8]<=[8]",
    )
    (reduced,) = read(text, EIGHT).sent
    assert (reduced.bytes, reduced.dtype, reduced.size) == (2 * 8 + 4 * 4, "bf16+f32", 8)
    assert (reduced.numbers, reduced.filled) == (10, 2)  # two fill it up to equal parts
    parts = {"all-gather": 7 / 8, "reduce-scatter": 7 / 8, "all-reduce": 7 / 4, "all-to-all": 1.0}
    for kind, part in parts.items():  # what a ring of eight sends
        assert Collective(kind, (Array("f32", (32,)),), ALL, 1, "").sent() == part * 4 * 32


def test_in_a_loop_it_counts_every_round_or_says_that_it_waits_for_data():
    reduction = "all-reduce(%x.1), replica_groups=[1,8]<=[8]"
    text = LOOP.replace("add(%x.1, %x.1)", reduction)
    assert [(c.times, c.waits) for c in read(text, EIGHT).sent] == [(21, False)]
    sent = read(text.replace(*WAITS), EIGHT).sent
    assert [(c.times, c.waits) for c in sent] == [(1, True)]


def sent(kind: str, attributes: str, sides: tuple[int, ...], chip: str = "v5e") -> Collective:
    """A collective of parameters, a MiB on each chip of a torus with a mesh of one axis."""
    places = tuple(itertools.product(*map(range, sides)))
    text = entry(
        "%x = f32[512,512]{1,0} parameter(0), metadata={op_name=\"params['w']\"}",
        f"%g = f32[512,512]{{1,0}} {kind}(%x), {attributes}",
    )
    (only,) = read(text, Layout((("data", len(places)),), places), CHIPS[chip]).sent
    return only


@pytest.mark.parametrize(
    ("chip", "sides", "chips", "links"),
    [
        ("v5e", (16, 16, 1), 16, 1),  # a ring
        ("v5e", (16, 16, 1), 8, 0.5),  # half of it is a row
        ("v5e", (8, 16, 1), 128, 1.5),  # sides of eight close in no ring on this chip
        ("v6e", (8, 8, 1), 8, 0.5),
        ("v4", (4, 4, 4), 16, 2),
        ("v4", (2, 2, 4), 4, 0.5),
    ],
)
def test_gathers_take_the_links_of_the_axes_they_span_rings_or_rows(chip, sides, chips, links):
    size = math.prod(sides)
    groups = f"replica_groups=[{size // chips},{chips}]<=[{size}], dimensions={{0}}"
    gather = sent("all-gather", groups, sides, chip)
    assert (gather.what, gather.bytes) == ("params['w']", 2**20)
    axis = CHIPS[chip].ici_bandwidth / CHIPS[chip].torus
    assert gather.seconds == pytest.approx(2**20 * (1 - 1 / chips) / (axis * links))


def test_exchanged_parts_go_a_quarter_around_the_axis_where_that_takes_longest():
    seconds = sent("all-to-all", "replica_groups=[1,128]<=[128]", (8, 16, 1)).seconds
    assert seconds == pytest.approx(4 * 2**20 / AXIS)  # the ring of sixteen, not the row of eight


@pytest.mark.parametrize(
    ("side", "to", "most"),
    [
        (16, lambda x, y: ((x + 8) % 16, (y - 3) % 16), 8),
        (4, lambda x, y: (x, (y + 1) % 4), 1),  # back along the row, against the others
    ],
)
def test_a_permutation_takes_as_long_as_its_fullest_link(side, to, most):
    targets = (to(*place) for place in itertools.product(range(side), repeat=2))
    pairs = ",".join(f"{{{n},{side * x + y}}}" for n, (x, y) in enumerate(targets))
    permuted = sent("collective-permute", f"source_target_pairs={{{pairs}}}", (side, side, 1))
    assert permuted.seconds == pytest.approx(most * 2**20 / (AXIS / 2))


def test_donated_arguments_whose_place_no_result_takes_are_named():
    assert (read(LOOP).donated, read(LOOP).kept) == (1, ())
    kept = read(LOOP.replace("(1, {}, may-alias)", "(0, {}, may-alias)")).kept
    assert kept == (("state.params['w']", 4 * 8 * 128),)
