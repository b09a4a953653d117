"""Small compiled programs, as the compilers write them, made by hand."""

LOOP = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias) }, entry=x

%cond (p.0: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(21)
  %p.0 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.0, %limit), direction=LT
}

%body (p.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i.1, %one)
  %twice = f32[8,128]{1,0:T(8,128)} add(%x.1, %x.1)
  ROOT %t.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %twice)
}

ENTRY %main (weights: f32[8,128], state: f32[8,128]) -> f32[8,128] {
  %weights = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="params[\\'w\\']"}
  %state = f32[8,128]{1,0:T(8,128)} parameter(1), metadata={op_name="state.params[\\'w\\']"}
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) tuple(%zero, %weights)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def entry(*lines: str, before: str = "") -> str:
    """A program of these instructions; the last is its result."""
    body = "\n".join(f"  {line}" for line in (*lines[:-1], f"ROOT {lines[-1]}"))
    return (
        f"HloModule jit_f, is_scheduled=true\n\n{before}\nENTRY %main () -> f32[] {{\n{body}\n}}\n"
    )
