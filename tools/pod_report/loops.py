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
    values: list[Value] = []
    for where, operand in arguments:
        value = _value(module, where, operand)
        if isinstance(value, Carried):
            first = _value(module, outer, outer.instructions[start.operands[value.index]])
            step = _value(module, body, body.instructions[body.root.operands[value.index]])
            if not isinstance(first, int) or not isinstance(step, Carried):
                return None
            if step.index != value.index:
                return None
            first += value.plus
            value = first if step.plus == 0 else Counter(first, step.plus)
        values.append(value)
    left, right = values
    return _rounds(left, right, compare.attribute("direction"))


@dataclasses.dataclass(frozen=True)
class Carried:
    """An element of a loop's tuple, plus a constant."""

    index: int
    plus: int = 0


@dataclasses.dataclass(frozen=True)
class Counter:
    """Where it begins and what each round adds."""

    first: int
    step: int


Value = int | Carried | Counter | None
PASSED_ON = ("bitcast", "copy", "convert", "reshape", "copy-done")


def _rounds(left: Value, right: Value, direction: str) -> int | None:
    if isinstance(right, Counter):
        mirror = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
        left, right, direction = right, left, mirror.get(direction, direction)
    if not isinstance(left, Counter) or not isinstance(right, int):
        return None
    distance, step = right - left.first, left.step
    if step < 0:
        distance, step = -distance, -step
        direction = {"GT": "LT", "GE": "LE"}.get(direction, direction)
    if direction == "LE":
        distance, direction = distance + 1, "LT"
    return max(0, math.ceil(distance / step)) if direction in ("LT", "NE") else None


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


def _value(module: Module, computation: Computation, instruction: Instruction) -> Value:
    """A scalar as far as the text tells it."""
    while instruction.opcode in (*PASSED_ON, "copy-start"):
        instruction = computation.operands(instruction)[0]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode == "get-tuple-element":
        source = computation.operands(instruction)[0]
        carried = source.opcode == "parameter"
        return Carried(int(instruction.attribute("index"))) if carried else None
    inner, operands = _unwrapped(module, computation, instruction)
    if inner.opcode not in ("add", "subtract"):
        return None
    left, right = (_value(module, where, operand) for where, operand in operands)
    if inner.opcode == "subtract":
        right = -right if isinstance(right, int) else None
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, Carried) and isinstance(right, int):
        return Carried(left.index, left.plus + right)
    return left + right if isinstance(left, int) and isinstance(right, int) else None
