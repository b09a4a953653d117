"""How often each part of a compiled program runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from tools.pod_report.hlo import Computation, Instruction, Module


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction that is run on its own, not as a part of a fusion."""

    instruction: Instruction
    computation: Computation
    times: int
    """Runs per call of the program."""
    waits: bool = False
    """True in a loop whose number of rounds depends on data."""
    endless: bool = False
    """True for such a loop itself."""

    def parts(self, module: Module) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction and, if it is a fusion, those within, with where each stands."""
        yield self.computation, self.instruction
        yield from module.inside(self.instruction)


PASSED_ON = ("bitcast", "copy", "convert", "reshape", "copy-done")
MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}


def visits(module: Module) -> Iterator[Visit]:
    """Every instruction that is run, loops and calls opened.

    A loop whose number of rounds depends on data counts as one round, and so does each branch of a
    condition.
    """
    yield from _visits(module, module.entry, 1, False)


def _visits(module: Module, computation: Computation, times: int, waits: bool) -> Iterator[Visit]:
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            count = trip_count(module, computation, instruction)
            yield Visit(instruction, computation, times, waits, endless=count is None)
            rounds = times * (1 if count is None else count)
            for part in ("condition", "body"):
                inner = module.computations[instruction.called(part)]
                yield from _visits(module, inner, rounds, waits or count is None)
            continue
        yield Visit(instruction, computation, times, waits)
        if instruction.opcode in ("call", "conditional"):
            names = re.findall(r"%?([\w.\-]+)", instruction.attribute("branch_computations"))
            for part in ("to_apply", "true_computation", "false_computation"):
                names.append(instruction.called(part))
            for name in filter(None, names):
                yield from _visits(module, module.computations[name], times, waits)


def trip_count(module: Module, outer: Computation, loop: Instruction) -> int | None:
    """Rounds of a loop that stands in `outer`; None where its condition depends on data."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    body = module.computations[loop.called("body")]
    start = outer.instructions[loop.operands[0]]
    condition = module.computations[loop.called("condition")]
    compare, arguments = _unwrapped(module, condition, condition.root)
    if compare.opcode != "compare" or {start.opcode, body.root.opcode} != {"tuple"}:
        return None
    sides = []
    for where, operand in arguments:
        value = _affine(module, where, operand)
        if value is None:
            return None
        index, first = value
        step = 0
        if index is not None:
            begin = _affine(module, outer, outer.instructions[start.operands[index]])
            left = _affine(module, body, body.instructions[body.root.operands[index]])
            if begin is None or begin[0] is not None or left is None or left[0] != index:
                return None
            first, step = first + begin[1], left[1]
        sides.append((first, step))
    return _rounds(*sides[0], *sides[1], compare.attribute("direction"))


def _rounds(left: int, step: int, right: int, other: int, direction: str) -> int | None:
    """Rounds while left + n step (direction) right + n other; one of the steps must be 0."""
    if other:  # the counter stands on the right
        left, step, right, other = right, other, left, step
        direction = MIRRORED.get(direction, direction)
    if step < 0:
        left, step, right = -left, -step, -right
        direction = MIRRORED.get(direction, direction)
    end = {"LT": right, "NE": right, "LE": right + 1}.get(direction)
    return None if other or not step or end is None else max(0, math.ceil((end - left) / step))


def _unwrapped(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Instruction, list[tuple[Computation, Instruction]]]:
    """The instruction that makes a value, behind copies and fusions of one, and its operands."""
    while instruction.opcode in PASSED_ON:
        instruction = computation.operands(instruction)[0]
    given = [(computation, operand) for operand in computation.operands(instruction)]
    fused = module.fused(instruction)
    if fused is None:
        return instruction, given
    inner, operands = _unwrapped(module, fused, fused.root)
    return inner, [
        given[int(operand.literal)] if operand.opcode == "parameter" else (where, operand)
        for where, operand in operands
    ]


def _affine(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[int | None, int] | None:
    """A scalar as (an element of the loop's tuple, or None, and the constant added to it); None
    where the text does not tell it."""
    while instruction.opcode in (*PASSED_ON, "copy-start"):
        instruction = computation.operands(instruction)[0]
    if instruction.opcode == "constant":
        number = re.fullmatch(r"-?\d+", instruction.literal)
        return (None, int(number[0])) if number else None
    if instruction.opcode == "get-tuple-element":
        carried = computation.operands(instruction)[0].opcode == "parameter"
        return (int(instruction.attribute("index")), 0) if carried else None
    inner, operands = _unwrapped(module, computation, instruction)
    if inner.opcode not in ("add", "subtract"):
        return None
    left, right = (_affine(module, where, operand) for where, operand in operands)
    sign = 1 if inner.opcode == "add" else -1
    if left is not None and left[0] is None and sign > 0:
        left, right = right, left
    if left is None or right is None or right[0] is not None:
        return None
    return left[0], left[1] + sign * right[1]
