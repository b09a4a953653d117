"""Bytes between a chip and its memory, or the host."""

import pytest

from tests.tools.pod_report.texts import entry
from tools.pod_report.hlo import parse, parse_arrays
from tools.pod_report.loops import visits
from tools.pod_report.traffic import hbm_bytes, host_transfers

pytestmark = pytest.mark.nightly(group="pods")
X = "f32[64,128]{1,0:T(8,128)}"
KEPT = "f32[64,128]{1,0:T(8,128)S(1)}"
ALL = 4 * 64 * 128


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("f32[16,257,1280]{2,1,0:T(8,128)}", 4 * 16 * 264 * 1280),
        ("f32[16,257,1280]{1,2,0:T(8,128)}", 4 * 16 * 384 * 1280),
        ("bf16[3,5]{1,0}", 2 * 15),
        ("pred[]{:T(512)}", 1),
        ("f32[5]{0:T(8,128)}", 4 * 128),
    ],
)
def test_memory_is_taken_in_whole_tiles(text, padded):
    (array,) = parse_arrays(text)
    assert array.padded_bytes == array.hbm_bytes == padded


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_f {}")


def moved(*lines: str, before: str = "") -> float:
    module = parse(entry(*lines, before=before))
    return hbm_bytes(module, module.entry, module.entry.root)


def test_operands_are_read_and_results_written():
    x = f"%x = {X} parameter(0)"
    assert moved(x, f"%y = {X} add(%x, %x)") == 3 * ALL
    assert moved(x, f"%y = {KEPT} add(%x, %x)") == 2 * ALL
    assert moved(f"%x = {KEPT} parameter(0)", f"%y = {X} negate(%x)") == ALL
    cut = "%y = f32[8,128]{1,0} slice(%x), slice={[0:8], [0:128]}"
    assert moved(f"%x = {KEPT} parameter(0)", cut) == ALL / 8


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((f"%y = {X} bitcast(%x)",), 0),
        ((f'%y = {X} custom-call(%x), custom_call_target="ConcatBitcast"',), 0),
        ((f"%y = ({KEPT}, {X}, u32[]) copy-start(%x)",), ALL),
        ((f"%s = ({KEPT}, {X}, u32[]) copy-start(%x)", f"%y = {KEPT} copy-done(%s)"), 0),
        (("%y = (f32[64,128]{1,0}, f32[8,128]{1,0:S(1)}, u32[]) slice-start(%x)",), ALL / 8),
        (("%i = s32[] constant(0)", "%y = f32[8,128]{1,0} dynamic-slice(%x, %i, %i)"), ALL / 4),
        (
            (
                "%u = f32[8,128]{1,0} parameter(1)",
                "%i = s32[] constant(0)",
                f"%y = {X} dynamic-update-slice(%x, %u, %i, %i)",
            ),
            ALL / 4,
        ),
    ],
)
def test_operations_that_move_nothing_or_a_part_count_as_that(lines, expected):
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


@pytest.mark.parametrize(
    ("line", "stops"),
    [
        (f"%y = {X} negate(%x)", False),
        ("%y = f32[64,128]{1,0:T(8,128)S(5)} copy(%x)", True),
        (f'%y = {X} custom-call(%x), custom_call_target="MoveToHost"', True),
        (f'%y = {X} custom-call(%x), custom_call_target="xla_python_cpu_callback"', True),
        (f'%y = {X} custom-call(%x), custom_call_target="ConcatBitcast"', False),
    ],
)
def test_instructions_that_wait_for_the_host_are_found(line, stops):
    module = parse(entry(f"%x = {X} parameter(0)", line))
    assert bool(host_transfers(list(visits(module)), module)) is stops
