"""Where a value of a compiled program goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adaperceiver_jax.aot.hlo import Computation, Instruction, Module

Place = tuple[Computation, Instruction]


def takers(
    module: Module,
    computation: Computation,
    value: Instruction,
    passes: Callable[[Computation, Instruction, Instruction], bool],
) -> Iterator[Instruction]:
    """The first instructions that do something with a value, inside and outside of fusions, in this
    round of a loop and the next.

    Args:
      passes: whether an instruction only passes a value on: where it stands, itself, the value.
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
    """What a computation's result, or one of them, is called where it is run, and in the next
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
