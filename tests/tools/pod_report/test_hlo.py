"""The text of compiled programs, read."""

import pytest

from tests.tools.pod_report.texts import entry
from tools.pod_report.hlo import parse, parse_arrays


def test_a_type_is_read_with_its_layout():
    (array,) = parse_arrays("bf16[16,257,1280]{1,2,0:T(8,128)(2,1)S(1)}")
    assert (array.dtype, array.dims, array.minor_to_major) == ("bf16", (16, 257, 1280), (1, 2, 0))
    assert (array.tile, array.space) == ((8, 128), 1)
    assert (array.bytes, array.hbm_bytes) == (2 * 16 * 257 * 1280, 0)  # it is held on the chip
    found = parse_arrays("((f32[2]{0}, s32[]), u32[]{:S(2)})")
    assert [a.dtype for a in found] == ["f32", "s32", "u32"]


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("f32[16,257,1280]{2,1,0:T(8,128)}", 4 * 16 * 264 * 1280),
        ("f32[16,257,1280]{1,2,0:T(8,128)}", 4 * 16 * 384 * 1280),
        ("f32[832]{0:T(1024)}", 4 * 1024),
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


def test_instructions_of_a_fusion_are_found_however_deep():
    inner = """\
%deep (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %e = f32[4]{0} exponential(%a)
}

%shallow (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %f = f32[4]{0} fusion(%b), kind=kLoop, calls=%deep
}
"""
    outer = "%x = f32[4]{0} parameter(0)", "%g = f32[4]{0} fusion(%x), kind=kLoop, calls=%shallow"
    module = parse(entry(*outer, before=inner))
    found = [i.opcode for _, i in module.inside(module.entry.root)]
    assert found == ["parameter", "fusion", "parameter", "exponential"]


def test_an_instruction_may_take_several_lines():
    """A Pallas kernel's own description holds line ends and braces."""
    text = entry(
        "%x = f32[8]{0} parameter(0)",
        '%k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"q": "{}"\n}}, metadata={op_name="jit(f)/kernel"}',
        "%y = f32[8]{0} negate(%k)",
    )
    names = {i.name: i.op_name for i in parse(text).entry.instructions.values()}
    assert names == {"x": "", "k": "jit(f)/kernel", "y": ""}
