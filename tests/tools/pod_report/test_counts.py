"""Rounds of loops, FLOPs of products and bytes moved, counted in the text of programs."""

import pytest

from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.hlo import parse
from tools.pod_report.loops import trip_count
from tools.pod_report.matmuls import product
from tools.pod_report.traffic import hbm_bytes
from tools.pod_report.values import argument

pytestmark = pytest.mark.nightly(group="pods")
X = "f32[64,128]{1,0:T(8,128)}"
KEPT = "f32[64,128]{1,0:T(8,128)S(1)}"
ALL = 4 * 64 * 128


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_f {}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 21),
        ({"constant(0)": "constant(4)", "constant(1)": "constant(2)"}, 9),
        ({"direction=LT": "direction=LE"}, 22),
        ({"compare(%i.0, %limit), direction=LT": "compare(%limit, %i.0), direction=GT"}, 21),
        ({"constant(0)": "constant(30)", "add(%i.1": "subtract(%i.1", "=LT": "=GT"}, 9),
        ({"%next = s32[]{:T(128)} add": "%next = s32[]{:T(128)} multiply"}, None),
        ({"%zero = s32[]{:T(128)} constant(0)": "%zero = s32[]{:T(128)} iota()"}, None),
    ],
)
def test_start_step_and_direction_of_a_loop_count(changes, expected):
    text = LOOP
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    module = parse(text)
    assert trip_count(module, module.entry, module.entry.instructions["loop"]) == expected


def test_an_array_in_a_loop_is_the_argument_unless_the_loop_changes_it():
    read = LOOP.replace("tuple(%next, %twice)", "tuple(%next, %x.1)")
    for text, expected in ((LOOP, ""), (read, "params['w']")):
        module = parse(text)
        assert argument(module, module.entry, module.entry.root) == expected


def test_products_of_heads_and_of_a_padded_convolution_are_seen_in_their_disguise():
    """Scores of 16 samples and 13 heads; 3 x 3 pixels, of which the edges have fewer."""
    for left, right, out, attributes, expected in (
        (
            *("bf16[16,64,13,32]{3,2,1,0}", "bf16[16,24,13,32]{3,2,1,0}"),
            "f32[16,13,64,24]{3,2,1,0}",
            "window={size=16x13 stride=15x12 lhs_dilate=16x13}, dim_labels=0b1f_0o1i->01bf",
            (16 * 13, 64, 32, 24),
        ),
        (
            *("f32[2,5,5,3]{3,2,1,0}", "f32[3,3,3,7]{3,2,1,0}", "f32[2,5,5,7]{3,2,1,0}"),
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            (1, 2 * 5 * 5, 3 * (13 / 5) ** 2, 7),
        ),
        (
            *("f32[2,8,6]{2,1,0}", "f32[1,2,9]{2,1,0}", "f32[2,8,9]{2,1,0}"),
            "window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=3",
            (3, 16, 2, 3),
        ),
    ):
        operands = f"%l = {left} parameter(0)", f"%r = {right} parameter(1)"
        entered = parse(entry(*operands, f"%c = {out} convolution(%l, %r), {attributes}")).entry
        found = product(entered, entered.root)
        assert found is not None
        sizes = found.groups, found.rows, found.inner, found.columns
        assert sizes == pytest.approx(expected)


def moved(*lines: str, before: str = "") -> float:
    module = parse(entry(*lines, before=before))
    return hbm_bytes(module, module.entry, module.entry.root)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((f"%y = {X} add(%x, %x)",), 3 * ALL),
        ((f"%y = {KEPT} add(%x, %x)",), 2 * ALL),
        (("%y = f32[3,257]{0,1:T(8,128)} iota()",), 4 * 264 * 128),  # in whole tiles
        ((f"%y = {X} bitcast(%x)",), 0),
        ((f"%s = ({KEPT}, {X}, u32[]) copy-start(%x)", f"%y = {KEPT} copy-done(%s)"), 0),
        (("%y = (f32[64,128]{1,0}, f32[8,128]{1,0:S(1)}, u32[]) slice-start(%x)",), ALL / 8),
        (("%i = s32[] constant(0)", "%y = f32[8,128]{1,0} dynamic-slice(%x, %i, %i)"), ALL / 4),
    ],
)
def test_operands_are_read_and_results_written_in_part_or_not_at_all(lines, expected):
    assert moved(f"%x = {X} parameter(0)", *lines) == expected


FUSED = f"""\
%fused (a: f32[64,128], b: f32[64,128], i: s32[]) -> f32[64,128] {{
  %a = {X} parameter(0)
  %b = {X} parameter(1)
  %i = s32[] parameter(2)
  %c = {X} convert(%a)
  %s = f32[8,128]{{1,0:T(8,128)}} dynamic-slice(%c, %i, %i), dynamic_slice_sizes={{8,128}}
  ROOT %u = {X} dynamic-update-slice(%b, %s, %i, %i)
}}
"""


def test_a_fusion_that_cuts_an_operand_and_updates_another_in_place_touches_the_parts():
    given = f"%x = {X} parameter(0)", f"%y = {X} parameter(1)", "%i = s32[]{:S(4)} parameter(2)"
    call = f"%z = {X} fusion(%x, %y, %i), kind=kLoop, calls=%fused"
    assert moved(*given, call, before=FUSED) == 3 * ALL / 8
