"""How often a loop runs, and which argument an array is, from a program's text."""

import pytest

from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.hlo import parse
from tools.pod_report.loops import trip_count
from tools.pod_report.values import argument

pytestmark = pytest.mark.nightly(group="pods")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 21),
        ({"constant(0)": "constant(4)"}, 17),
        ({"constant(1)": "constant(2)"}, 11),
        ({"direction=LT": "direction=LE"}, 22),
        ({"direction=LT": "direction=NE"}, 21),
        ({"compare(%i.0, %limit), direction=LT": "compare(%limit, %i.0), direction=GT"}, 21),
        ({"constant(0)": "constant(30)", "add(%i.1": "subtract(%i.1", "=LT": "=GT"}, 9),
        ({"%next = s32[]{:T(128)} add": "%next = s32[]{:T(128)} multiply"}, None),
        ({"tuple(%next, %twice)": "tuple(%one, %twice)"}, None),
        ({"%zero = s32[]{:T(128)} constant(0)": "%zero = s32[]{:T(128)} iota()"}, None),
    ],
)
def test_start_step_and_direction_count(changes, expected):
    text = LOOP
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    module = parse(text)
    assert trip_count(module, module.entry, module.entry.instructions["loop"]) == expected


def source(text: str, name: str, computation: str = "main") -> str:
    module = parse(text)
    where = module.computations[computation]
    return argument(module, where, where.instructions[name])


def test_an_array_that_is_cut_or_moved_is_still_the_argument_unless_a_loop_changes_it():
    lines = (
        "%x = f32[8]{0} parameter(0), metadata={op_name=\"params['w']\"}",
        "%t = (f32[8]{0}) tuple(%x)",
        "%e = f32[8]{0} get-tuple-element(%t), index=0",
        "%s = f32[4]{0} slice(%e), slice={[0:4]}",
    )
    assert source(entry(*lines, "%y = f32[4]{0} copy(%s)"), "y") == "params['w']"
    assert source(entry(*lines, "%y = f32[4]{0} negate(%s)"), "y") == ""
    read = LOOP.replace("tuple(%next, %twice)", "tuple(%next, %x.1)")
    for text, expected in ((LOOP, ""), (read, "params['w']")):
        assert source(text, "x.1", "body") == source(text, "out") == expected
