"""Which argument an array is."""

import pytest

from adaperceiver_jax.aot.hlo import parse
from adaperceiver_jax.aot.provenance import argument
from tests.aot.texts import LOOP, entry


def source(text: str, computation: str, name: str) -> str:
    module = parse(text)
    where = module.computations[computation]
    return argument(module, where, where.instructions[name])


CAST = """\
%cast (a: f32[8]) -> bf16[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %c = bf16[8]{0} convert(%a)
}
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("%y = f32[4]{0} slice(%x), slice={[0:4]}", "%z = f32[4]{0} copy(%y)"), "params['w']"),
        (("%y = bf16[8]{0} fusion(%x), kind=kLoop, calls=%cast",), "params['w']"),
        (
            ("%t = (f32[8]{0}) tuple(%x)", "%y = f32[8]{0} get-tuple-element(%t), index=0"),
            "params['w']",
        ),
        (("%y = f32[8]{0} negate(%x)",), ""),
    ],
)
def test_what_is_cut_cast_or_moved_is_still_the_argument(lines, expected):
    weights = "%x = f32[8]{0} parameter(0), metadata={op_name=\"params['w']\"}"
    text = entry(weights, *lines, before=CAST)
    assert source(text, "main", lines[-1].split()[0].lstrip("%")) == expected


def test_a_stack_that_a_loop_only_reads_is_the_argument():
    text = LOOP.replace("tuple(%next, %twice)", "tuple(%next, %x.1)")
    assert source(text, "body", "x.1") == "params['w']"
    assert source(text, "main", "out") == "params['w']"


def test_what_a_loop_changes_is_not():
    assert source(LOOP, "body", "x.1") == ""
    assert source(LOOP, "main", "out") == ""


def test_a_part_that_goes_around_the_chips_is_still_the_argument():
    around = "collective-permute(%x.1), source_target_pairs={{0,1},{1,0}}"
    text = LOOP.replace("add(%x.1, %x.1)", around)
    assert source(text, "body", "x.1") == "params['w']"
