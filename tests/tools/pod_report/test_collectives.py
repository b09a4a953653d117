"""Messages between chips: kinds, sizes, and the axes of the mesh."""

import pytest

from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.chips import CHIPS
from tools.pod_report.collectives import Collective, collectives
from tools.pod_report.hlo import Array, parse
from tools.pod_report.loops import visits
from tools.pod_report.topology import Layout

pytestmark = pytest.mark.nightly(group="pods")
MESH = Layout((("data", 4), ("fsdp", 2)), tuple((x, y, 0) for x in range(4) for y in range(2)))
ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 2, 4, 6), (1, 3, 5, 7))
ALL = (tuple(range(8)),)


def found(text: str, layout: Layout = MESH) -> list[Collective]:
    module = parse(text)
    return list(collectives(module, list(visits(module)), layout, CHIPS["v5e"]))


def gathered(groups: str) -> Collective:
    gather = f"all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    (only,) = found(entry("%x = f32[4,8]{1,0} parameter(0)", f"%g = f32[8,8]{{1,0}} {gather}"))
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
    (reduced,) = found(
        entry(
            "%x = bf16[6]{0} parameter(0)",
            "%y = f32[4]{0} parameter(1)",
            "%zero = f32[] constant(0)",
            "%padded = bf16[8]{0} pad(%x, %zero), padding=0_2",
            "%r = (bf16[8]{0}, f32[4]{0}) all-reduce(%padded, %y), replica_groups=[1,8]<=[8]",
        )
    )
    assert (reduced.bytes, reduced.dtype, reduced.size) == (2 * 8 + 4 * 4, "bf16+f32", 8)
    assert (reduced.numbers, reduced.filled) == (10, 2)  # two fill it up to equal parts
    parts = {"all-gather": 7 / 8, "reduce-scatter": 7 / 8, "all-reduce": 7 / 4, "all-to-all": 1.0}
    for kind, part in parts.items():  # what a ring of eight sends
        assert Collective(kind, (Array("f32", (32,)),), ALL, 1, "").sent() == part * 4 * 32


def test_in_a_loop_it_counts_every_round_or_says_that_it_waits_for_data():
    reduction = "all-reduce(%x.1), replica_groups=[1,8]<=[8]"
    text = LOOP.replace("add(%x.1, %x.1)", reduction)
    assert [(c.times, c.waits) for c in found(text)] == [(21, False)]
    text = text.replace("%next = s32[]{:T(128)} add", "%next = s32[]{:T(128)} multiply")
    assert [(c.times, c.waits) for c in found(text)] == [(1, True)]
