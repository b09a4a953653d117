"""How often a loop runs, from the text of its condition."""

import jax
import jax.numpy as jnp
import pytest

from adaperceiver_jax.aot.hlo import parse
from adaperceiver_jax.aot.loops import trip_count, unknown_loops, visits
from tests.aot.texts import LOOP


def rounds(text: str) -> int | None:
    module = parse(text)
    return trip_count(module, module.entry, module.entry.instructions["loop"])


def test_a_loop_counts_to_the_constant_of_its_condition():
    assert rounds(LOOP) == 21


@pytest.mark.parametrize(
    ("change", "expected"),
    [
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


def test_what_is_in_a_loop_is_run_as_often():
    times = {v.instruction.name: v.times for v in visits(parse(LOOP))}
    assert (times["weights"], times["twice"], times["lt"]) == (1, 21, 21)


def test_loops_of_loops_multiply_and_those_that_wait_for_data_are_named():
    def f(x):
        def inner(y, _):
            return jnp.sin(y) @ y, None

        def outer(y, _):
            return jax.lax.scan(inner, y, None, length=5)[0], None

        y = jax.lax.scan(outer, x, None, length=3)[0]
        return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y + 1, y)

    module = parse(jax.jit(f).lower(jnp.ones((4, 4))).compile().as_text())
    run = list(visits(module))
    assert max(visit.times for visit in run) == 15
    assert len(unknown_loops(module)) == 1
