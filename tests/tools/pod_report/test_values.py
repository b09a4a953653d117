"""Which argument an array is."""

import pytest

from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.hlo import parse
from tools.pod_report.values import argument

CAST = """\
%cast (a: f32[8]) -> bf16[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %c = bf16[8]{0} convert(%a)
}
"""


def source(text: str, computation: str, name: str) -> str:
    module = parse(text)
    where = module.computations[computation]
    return argument(module, where, where.instructions[name])


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
def test_an_array_that_is_cut_cast_or_moved_is_still_the_argument(lines, expected):
    weights = "%x = f32[8]{0} parameter(0), metadata={op_name=\"params['w']\"}"
    text = entry(weights, *lines, before=CAST)
    assert source(text, "main", lines[-1].split()[0].lstrip("%")) == expected


def test_a_stack_is_the_argument_unless_a_loop_changes_it():
    read = LOOP.replace("tuple(%next, %twice)", "tuple(%next, %x.1)")
    sent = "collective-permute(%x.1), source_target_pairs={{0,1},{1,0}}"
    for text, expected in ((LOOP, ""), (read, "params['w']")):
        assert source(text, "body", "x.1") == source(text, "main", "out") == expected
    # A part that goes around the chips is still the argument's.
    assert source(LOOP.replace("add(%x.1, %x.1)", sent), "body", "x.1") == "params['w']"
