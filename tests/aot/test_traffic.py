"""Bytes between a chip and its memory, or the host."""

import pytest

from adaperceiver_jax.aot.hlo import parse
from adaperceiver_jax.aot.loops import visits
from adaperceiver_jax.aot.traffic import hbm_bytes, host_transfers
from tests.aot.texts import entry

X = "f32[64,128]{1,0:T(8,128)}"
KEPT = "f32[64,128]{1,0:T(8,128)S(1)}"
ALL = 4 * 64 * 128


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
        ((f"%y = ({X}) tuple(%x)",), 0),
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
def test_what_moves_nothing_or_a_part_counts_as_that(lines, expected):
    assert moved(f"%x = {X} parameter(0)", *lines) == expected


CUT = """\
%cut (a: f32[64,128], b: f32[8,128], i: s32[]) -> f32[8,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  %c = f32[64,128]{1,0:T(8,128)} convert(%a)
  %s = f32[8,128]{1,0:T(8,128)} dynamic-slice(%c, %i, %i), dynamic_slice_sizes={8,128}
  ROOT %m = f32[8,128]{1,0:T(8,128)} multiply(%s, %b)
}
"""
FILLED = """\
%filled (a: f32[64,128], b: f32[8,128], i: s32[]) -> (f32[64,128], f32[8,128]) {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  %n = f32[8,128]{1,0:T(8,128)} negate(%b)
  %u = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%a, %n, %i, %i)
  ROOT %t = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%u, %n)
}
"""
GIVEN = (
    f"%x = {X} parameter(0)",
    "%y = f32[8,128]{1,0:T(8,128)} parameter(1)",
    "%i = s32[]{:S(4)} parameter(2)",
)
PART = ALL / 8


def test_a_fusion_that_cuts_an_operand_up_reads_the_part():
    call = "%z = f32[8,128]{1,0:T(8,128)} fusion(%x, %y, %i), kind=kLoop, calls=%cut"
    assert moved(*GIVEN, call, before=CUT) == 3 * PART


def test_a_fusion_that_updates_in_place_touches_the_part():
    call = f"%z = ({X}, f32[8,128]{{1,0:T(8,128)}}) fusion(%x, %y, %i), kind=kLoop, calls=%filled"
    assert moved(*GIVEN, call, before=FILLED) == PART + 2 * PART + PART


@pytest.mark.parametrize(
    ("line", "stops"),
    [
        (f"%y = {X} negate(%x)", False),
        (f"%y = ({X}, token[]) infeed(%x)", True),
        ("%y = f32[64,128]{1,0:T(8,128)S(5)} copy(%x)", True),
        (f'%y = {X} custom-call(%x), custom_call_target="MoveToHost"', True),
        (f'%y = {X} custom-call(%x), custom_call_target="xla_python_cpu_callback"', True),
        (f'%y = {X} custom-call(%x), custom_call_target="ConcatBitcast"', False),
    ],
)
def test_what_waits_for_the_host_is_found(line, stops):
    module = parse(entry(f"%x = {X} parameter(0)", line))
    assert bool(host_transfers(list(visits(module)), module)) is stops
