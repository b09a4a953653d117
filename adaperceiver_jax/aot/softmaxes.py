"""Softmaxes of a compiled program, and those whose scores go through the large memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adaperceiver_jax.aot.flow import takers
from adaperceiver_jax.aot.hlo import Computation, Instruction, Module
from adaperceiver_jax.aot.loops import Visit

SPILLED = 2**20
"""Bytes, each time, from which scores count."""
MOVES = ("convert", "bitcast", "copy", "copy-start", "copy-done", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class Softmax:
    """An exponential of scores that are not kept on the chip."""

    dims: tuple[int, ...]
    op_name: str
    bytes: float
    """Read and written, all its times."""


def softmaxes(module: Module, run: Sequence[Visit]) -> tuple[int, list[Softmax]]:
    """How many there are, and those that spill."""
    count, spilled = 0, []
    for visit in run:
        found = [(visit.computation, visit.instruction), *module.inside(visit.instruction)]
        exponentials = {
            inner.arrays[0].dims: inner.op_name
            for where, inner in found
            if inner.opcode == "exponential" and _is_summed(module, where, inner)
        }
        count += bool(exponentials)
        touched = [
            *visit.instruction.arrays,
            *(a for o in visit.computation.operands(visit.instruction) for a in o.arrays),
        ]
        for dims, op_name in exponentials.items():
            moved = sum(array.hbm_bytes for array in touched if array.dims == dims)
            if moved >= SPILLED:
                spilled.append(Softmax(dims, op_name, moved * visit.times))
    return count, spilled


def _is_summed(module: Module, computation: Computation, exponential: Instruction) -> bool:
    """Whether what is added up, here or by a later instruction, is the exponential itself, but for
    a mask, as in a softmax."""

    def passes(where: Computation, user: Instruction, value: Instruction) -> bool:
        if user.opcode == "multiply":
            return any(_is_mask(module, where, o) for o in where.operands(user) if o is not value)
        return user.opcode in MOVES or user.opcode == "select"

    return any(user.opcode == "reduce" for user in takers(module, computation, exponential, passes))


def _is_mask(module: Module, computation: Computation, value: Instruction) -> bool:
    """Whether an array is made of true and false."""
    while value.arrays and value.arrays[0].dtype != "pred":
        if value.opcode == "parameter" and computation.name in module.callers:
            inner = computation
            computation, caller = module.callers[inner.name]
            if module.fused(caller) is not inner:
                return False
            value = computation.operands(caller)[int(value.literal)]
        elif value.opcode in MOVES or value.opcode == "broadcast":
            value = computation.operands(value)[0]
        else:
            return False
    return bool(value.arrays)
