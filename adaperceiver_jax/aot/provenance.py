"""Which argument of a compiled program an array is, however it was cut, cast or moved."""

from __future__ import annotations

from adaperceiver_jax.aot.hlo import Computation, Instruction, Module

MOVES = frozenset(
    (
        "bitcast",
        "convert",
        "copy",
        "reshape",
        "transpose",
        "slice",
        "dynamic-slice",
        "pad",
        "copy-start",
        "copy-done",
        "slice-start",
        "slice-done",
        "all-gather",
        "all-gather-start",
        "all-gather-done",
        "all-to-all",
        "collective-permute",
        "collective-permute-start",
        "collective-permute-done",
        "concatenate",
        "opt-barrier",
        "async-start",
        "async-done",
        "custom-call",
    )
)
"""Whose result is the first operand, or a part of it."""
HANDED_ON = frozenset(
    (
        "copy",
        "bitcast",
        "copy-start",
        "copy-done",
        "collective-permute",
        "collective-permute-start",
        "collective-permute-done",
    )
)
"""Of these a loop may do what it likes: a part that goes around the chips is that argument's."""


def argument(module: Module, computation: Computation, instruction: Instruction) -> str:
    """Its name, "params['head']['kernel']"; '' for what is computed."""
    for _ in range(1000):
        operands = computation.operands(instruction)
        if instruction.opcode == "parameter":
            if computation is module.entry:
                return instruction.op_name
            caller = module.callers.get(computation.name)
            if caller is None or caller[1].opcode not in ("fusion", "call", "async-start"):
                return ""
            computation, outer = caller
            instruction = computation.operands(outer)[int(instruction.literal)]
        elif instruction.opcode == "get-tuple-element":
            found = _element(module, computation, operands[0], instruction)
            if found is None:
                return ""
            computation, instruction = found
        elif instruction.opcode == "fusion":
            computation = module.computations[instruction.called("calls")]
            instruction = computation.root
        elif instruction.opcode in MOVES and operands:
            instruction = operands[0]
        else:
            return ""
    return ""


def _element(
    module: Module, computation: Computation, source: Instruction, element: Instruction
) -> tuple[Computation, Instruction] | None:
    """What stands in one place of a tuple, and where."""
    place = int(element.attribute("index"))
    if source.opcode == "tuple":
        return computation, computation.operands(source)[place]
    if source.opcode in MOVES:
        return computation, source
    if source.opcode == "fusion":
        inner = module.computations[source.called("calls")]
        if inner.root.opcode == "tuple":
            return inner, inner.operands(inner.root)[place]
        return inner, inner.root
    if source.opcode == "while":
        body = module.computations[source.called("body")]
        if _changes(body, place):
            return None
        return _first(computation, source, place)
    if source.opcode == "parameter":
        caller = module.callers.get(computation.name)
        if caller is not None and caller[1].opcode == "while" and not _changes(computation, place):
            return _first(*caller, place)
    return None


def _first(
    outer: Computation, loop: Instruction, place: int
) -> tuple[Computation, Instruction] | None:
    """What a loop's tuple holds there when it begins."""
    start = outer.operands(loop)[0]
    return (outer, outer.operands(start)[place]) if start.opcode == "tuple" else None


def _changes(body: Computation, place: int) -> bool:
    """Whether a loop's body leaves something else in that place than it found."""
    if body.root.opcode != "tuple":
        return True
    left = body.operands(body.root)[place]
    while left.opcode in HANDED_ON:
        left = body.operands(left)[0]
    same = left.opcode == "get-tuple-element" and int(left.attribute("index")) == place
    return not same or body.operands(left)[0].opcode != "parameter"
