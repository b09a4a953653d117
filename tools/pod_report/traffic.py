"""Bytes that a compiled program moves between a chip and its large memory, or the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tools.pod_report.hlo import HOST, Array, Computation, Instruction, Module
from tools.pod_report.loops import Visit
from tools.pod_report.values import takers

FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
    *("partition-id", "replica-id", "while", "call", "conditional", "after-all", "async-update"),
    *("copy-done", "slice-done", "async-done"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done"),
)
"""Operations that move nothing, or whose bytes are counted at their start or within."""
ONLY_NAMES = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding")
SLICES = ("dynamic-slice", "slice", "gather")
LOOKS_THROUGH = ("bitcast", "convert", "reshape", "copy", "transpose")
TO_HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
HOST_CALLS = ("MoveToHost", "MoveToDevice", "callback", "HostExecute", "PinToHost")
SPILLED = 2**20
"""Bytes, each time, from which the scores of a softmax count as spilled."""
UNCHANGED = ("convert", "bitcast", "copy", "copy-start", "copy-done", "reshape", "transpose")


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes read and written by an instruction that is run on its own.

    Arrays on the chip itself are free; of an array that is only cut up the parts count, of one that
    is updated in place the update.
    """
    opcode, arrays = instruction.opcode, instruction.arrays
    operands = computation.operands(instruction)
    if opcode in FREE or instruction.target in ONLY_NAMES:
        return 0.0
    if opcode == "copy-start":  # (target, source, context)
        return arrays[0].hbm_bytes + arrays[1].hbm_bytes
    if opcode == "slice-start":  # ((source), target, context)
        return _of(arrays[0], arrays[1]) + arrays[1].hbm_bytes
    if opcode == "dynamic-update-slice":
        return 2 * _of(arrays[0], operands[1].arrays[0])
    if opcode in SLICES:
        return _of(operands[0].arrays[0], arrays[0]) + arrays[0].hbm_bytes
    fused = module.fused(instruction)
    if fused is None:
        results = arrays
        if opcode.endswith("-start"):  # (operands, results, ...)
            results = arrays[len(operands) : 2 * len(operands)]
        return _sum(results) + sum(_sum(operand.arrays) for operand in operands)
    if "aliasing" in instruction.attributes and "async-collective" in instruction.name:
        done = "done" in instruction.name
        return 0.0 if done else _sum(operands[0].arrays) + arrays[1].hbm_bytes
    read = sum(
        _read(module, fused, parameter, operand.arrays[0])
        for parameter, operand in zip(fused.parameters, operands, strict=True)
        if operand.arrays
    )
    roots = fused.operands(fused.root) if fused.root.opcode == "tuple" else [fused.root]
    if len(roots) != len(arrays):
        return read + _sum(arrays)
    passed = _passed_on(instruction)
    return read + sum(
        _written(module, fused, root, array)
        for place, (root, array) in enumerate(zip(roots, arrays, strict=True))
        if place not in passed
    )


def _sum(arrays: Sequence[Array]) -> float:
    return sum(array.hbm_bytes for array in arrays)


def _of(held: Array, part: Array) -> float:
    """Bytes of a part of an array, where that lies in the large memory."""
    return part.padded_bytes if held.hbm_bytes else 0.0


def _passed_on(instruction: Instruction) -> frozenset[int]:
    """Results of a fusion that only pass a running collective's buffers on."""
    if not instruction.called("calls").startswith("async_collective_fusion"):
        return frozenset()
    text = instruction.attributes.partition("output_to_operand_aliasing={")[2].partition("}, calls")
    pieces = text[0].replace("{}", "").split("{")[1:]
    return frozenset(int(piece.partition("}")[0]) for piece in pieces if piece[:1].isdigit())


def _read(module: Module, fused: Computation, parameter: Instruction, given: Array) -> float:
    """Bytes read of one operand of a fusion."""
    if not given.hbm_bytes:
        return 0.0
    total = 0.0
    for user in fused.users[parameter.name]:
        first = user.operands[0] == parameter.name
        inner = module.fused(user)
        if user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and first):
            continue  # passed on, or updated in place: what is written counts as a result
        if inner is not None:
            for place, name in enumerate(user.operands):
                if name == parameter.name:
                    total += _read(module, inner, inner.parameters[place], given)
        elif user.opcode in SLICES and first:
            total += user.arrays[0].bytes
        elif user.opcode in LOOKS_THROUGH and user is not fused.root:
            total += min(given.hbm_bytes, _read(module, fused, user, given))
        else:
            return given.hbm_bytes
    return min(total, given.hbm_bytes)


def _written(module: Module, fused: Computation, root: Instruction, result: Array) -> float:
    """Bytes written of one result of a fusion."""
    if not result.hbm_bytes:
        return 0.0
    while root.opcode in ("bitcast", "convert", "copy") and root.operands:
        root = fused.operands(root)[0]
    inner = module.fused(root)
    if inner is not None and len(root.arrays) == 1:
        return _written(module, inner, inner.root, result)
    if root.opcode == "dynamic-update-slice":
        update = fused.operands(root)[1].arrays[0]
        return 2 * min(result.hbm_bytes, update.bytes)
    return result.hbm_bytes


def host_transfers(visits: Sequence[Visit], module: Module) -> list[Visit]:
    """Instructions that stop for the host: transfers, calls, arrays in its memory."""
    return [
        visit
        for visit in visits
        if visit.instruction.opcode in TO_HOST
        or any(array.space == HOST for array in visit.instruction.arrays)
        or any(calls_host(inner) for _, inner in visit.parts(module))
    ]


def calls_host(instruction: Instruction) -> bool:
    return any(name in instruction.target for name in HOST_CALLS)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """An exponential of scores that go through the chip's large memory."""

    dims: tuple[int, ...]
    op_name: str
    bytes: float
    """Bytes read and written, over all executions."""


def softmaxes(module: Module, run: Sequence[Visit]) -> tuple[int, list[Softmax]]:
    """Number of softmaxes, and those whose scores spill."""
    count, spilled = 0, []
    for visit in run:
        exponentials = {
            inner.arrays[0].dims: inner.op_name
            for where, inner in visit.parts(module)
            if inner.opcode == "exponential" and _is_summed(module, where, inner)
        }
        count += bool(exponentials)
        operands = visit.computation.operands(visit.instruction)
        touched = [array for i in (visit.instruction, *operands) for array in i.arrays]
        for dims, op_name in exponentials.items():
            moved = _sum([array for array in touched if array.dims == dims])
            if moved >= SPILLED:
                spilled.append(Softmax(dims, op_name, moved * visit.times))
    return count, spilled


def _is_summed(module: Module, computation: Computation, exponential: Instruction) -> bool:
    """True if the exponential itself, but for a mask, is added up, here or by a later instruction,
    as in a softmax."""

    def passes(where: Computation, user: Instruction, value: Instruction) -> bool:
        if user.opcode == "multiply":
            return any(_is_mask(module, where, o) for o in where.operands(user) if o is not value)
        return user.opcode in UNCHANGED or user.opcode == "select"

    return any(user.opcode == "reduce" for user in takers(module, computation, exponential, passes))


def _is_mask(module: Module, computation: Computation, value: Instruction) -> bool:
    """True if an array is made of true and false."""
    while value.arrays and value.arrays[0].dtype != "pred":
        if value.opcode == "parameter" and computation.name in module.callers:
            inner = computation
            computation, caller = module.callers[inner.name]
            if module.fused(caller) is not inner:
                return False
            value = computation.operands(caller)[int(value.literal)]
        elif value.opcode in UNCHANGED or value.opcode == "broadcast":
            value = computation.operands(value)[0]
        else:
            return False
    return bool(value.arrays)
