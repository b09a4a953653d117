"""How often a loop runs, from the text of its condition."""

import pytest

from tests.tools.pod_report.texts import LOOP
from tools.pod_report.hlo import parse
from tools.pod_report.loops import trip_count, visits


def rounds(text: str) -> int | None:
    module = parse(text)
    return trip_count(module, module.entry, module.entry.instructions["loop"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("while(", "while("), 21),
        (("constant(0)", "constant(4)"), 17),
        (("constant(1)", "constant(2)"), 11),
        (("direction=LT", "direction=LE"), 22),
        (("direction=LT", "direction=NE"), 21),
        (("compare(%i.0, %limit), direction=LT", "compare(%limit, %i.0), direction=GT"), 21),
        (("%next = s32[]{:T(128)} add", "%next = s32[]{:T(128)} multiply"), None),
        (("tuple(%next, %twice)", "tuple(%one, %twice)"), None),
        (("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} iota()"), None),
    ],
)
def test_start_step_and_direction_count(change, expected):
    assert change[0] in LOOP
    assert rounds(LOOP.replace(*change)) == expected


def test_a_loop_may_count_down():
    down = LOOP.replace("constant(0)", "constant(30)").replace("add(%i.1", "subtract(%i.1")
    assert rounds(down.replace("direction=LT", "direction=GT")) == 9


def test_the_limit_may_be_carried_along_and_the_comparison_fused():
    text = LOOP.replace("(s32[]{:T(128)}, f32", "(s32[]{:T(128)}, s32[]{:T(128)}, f32")
    text = text.replace("(s32[]{:T(128)}, /*", "(s32[]{:T(128)}, s32[]{:T(128)}, /*")
    text = text.replace("%p.1), index=1", "%p.1), index=2")
    text = text.replace("%limit = s32[]{:T(128)} constant(21)\n", "")
    text = text.replace(
        "  ROOT %lt = pred[]{:T(512)} compare(%i.0, %limit), direction=LT",
        "  %limit = s32[]{:T(128)} get-tuple-element(%p.0), index=1\n"
        "  ROOT %lt = pred[] fusion(%limit, %i.0), kind=kLoop, calls=%compared",
    )
    text = text.replace(
        "  %one =", "  %same = s32[]{:T(128)} get-tuple-element(%p.1), index=1\n  %one ="
    )
    text = text.replace("tuple(%next, %twice)", "tuple(%next, %same, %twice)")
    text = text.replace("tuple(%zero, %weights)", "tuple(%zero, %many, %weights)")
    text = text.replace("  %start =", "  %many = s32[]{:T(128)} constant(33)\n  %start =")
    compared = """\
%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %c = pred[]{:T(512)} compare(%b, %a), direction=LT
}

%cond ("""
    assert rounds(text.replace("%cond (", compared, 1)) == 33


def test_instructions_in_a_loop_run_every_round():
    times = {v.instruction.name: v.times for v in visits(parse(LOOP))}
    assert (times["weights"], times["twice"], times["lt"]) == (1, 21, 21)
