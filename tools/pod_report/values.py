"""Arrays followed through a compiled program: which argument one is, and what takes it next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tools.pod_report.hlo import Computation, Instruction, Module

Place = tuple[Computation, Instruction]
HANDED_ON = (
    *("copy", "bitcast", "copy-start", "copy-done"),
    *("collective-permute", "collective-permute-start", "collective-permute-done"),
)
"""Operations that a loop may repeat on an argument: a part that goes around the chips is still
that argument's."""
MOVES = (
    *HANDED_ON,
    *("convert", "reshape", "transpose", "pad", "concatenate", "opt-barrier", "custom-call"),
    *("slice", "dynamic-slice", "slice-start", "slice-done", "async-start", "async-done"),
    *("all-gather", "all-gather-start", "all-gather-done", "all-to-all"),
)
"""Operations whose result is the first operand, or a part of it."""


def argument(module: Module, computation: Computation, instruction: Instruction) -> str:
    """Name of the program's argument that an array is, however it was cut, cast or moved:
    "params['head']['kernel']"; '' for a computed array."""
    for _ in range(1000):
        if instruction.opcode == "parameter" and computation is module.entry:
            return instruction.op_name
        found = _source(module, computation, instruction)
        if found is None:
            return ""
        computation, instruction = found
    return ""


def _source(module: Module, computation: Computation, instruction: Instruction) -> Place | None:
    """The array that an instruction hands on, a step back; None if it computes one."""
    operands = computation.operands(instruction)
    if instruction.opcode == "parameter":
        outer, caller = module.callers.get(computation.name, (computation, instruction))
        if caller.opcode not in ("fusion", "call", "async-start"):
            return None
        return outer, outer.operands(caller)[int(instruction.literal)]
    if instruction.opcode == "get-tuple-element":
        return _element(module, computation, operands[0], int(instruction.attribute("index")))
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        return inner, inner.root
    if instruction.opcode in MOVES and operands:
        return computation, operands[0]
    return None


def _element(
    module: Module, computation: Computation, source: Instruction, place: int
) -> Place | None:
    """The array in one place of a tuple."""
    if source.opcode == "tuple":
        return computation, computation.operands(source)[place]
    if source.opcode in MOVES:
        return computation, source
    if source.opcode == "fusion":
        inner = module.computations[source.called("calls")]
        if inner.root.opcode == "tuple":
            return inner, inner.operands(inner.root)[place]
        return inner, inner.root
    outer, loop, body = computation, source, computation
    if source.opcode == "parameter":
        outer, loop = module.callers.get(computation.name, (computation, source))
    elif source.opcode == "while":
        body = module.computations[source.called("body")]
    if loop.opcode != "while" or _changes(body, place):
        return None
    start = outer.operands(loop)[0]
    return (outer, outer.operands(start)[place]) if start.opcode == "tuple" else None


def _changes(body: Computation, place: int) -> bool:
    """True if a loop's body leaves something else in that place of its tuple than it found."""
    if body.root.opcode != "tuple":
        return True
    left = body.operands(body.root)[place]
    while left.opcode in HANDED_ON:
        left = body.operands(left)[0]
    same = left.opcode == "get-tuple-element" and int(left.attribute("index")) == place
    return not same or body.operands(left)[0].opcode != "parameter"


def takers(
    module: Module,
    computation: Computation,
    value: Instruction,
    passes: Callable[[Computation, Instruction, Instruction], bool],
) -> Iterator[Instruction]:
    """The first instructions that do something with a value, inside and outside of fusions, in this
    round of a loop and the next.

    Args:
      passes: (where an instruction stands, itself, the value) -> True if it only passes that on.
    """
    seen, ahead = set[tuple[str, str]](), [(computation, value)]
    while ahead:
        where, current = ahead.pop()
        if (where.name, current.name) in seen:
            continue
        seen.add((where.name, current.name))
        if current.root:
            ahead += _left(module, where, None)
        for user in where.users[current.name]:
            places = [n for n, name in enumerate(user.operands) if name == current.name]
            if (inner := module.fused(user)) is not None:
                ahead += [(inner, inner.parameters[place]) for place in places]
            elif user.opcode == "tuple" and user.root:
                ahead += [left for place in places for left in _left(module, where, place)]
            elif passes(where, user, current):
                ahead.append((where, user))
            else:
                yield user


def _left(module: Module, computation: Computation, index: int | None) -> Iterator[Place]:
    """Names of a computation's result, or of one of its results, where it is run and in the next
    round of a loop."""
    outer, caller = module.callers.get(computation.name, (computation, computation.root))
    around = caller.opcode == "while" and caller.called("body") == computation.name
    if not around and module.fused(caller) is not computation:
        return
    if index is None:
        yield outer, caller
        return
    found = [(outer, caller), *((computation, p) for p in computation.parameters if around)]
    for where, whole in found:
        for user in where.users[whole.name]:
            if user.opcode == "get-tuple-element" and int(user.attribute("index")) == index:
                yield where, user
