"""Collectives of a compiled program: what its chips send to each other, and along which axes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tools.pod_report.chips import Chip
from tools.pod_report.hlo import Array, Computation, Instruction, Module
from tools.pod_report.loops import Visit
from tools.pod_report.topology import Layout
from tools.pod_report.values import argument, takers

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
REDUCTIONS = ("all-reduce", "reduce-scatter")
START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""Custom calls in fusions around a collective that runs beside other work."""
MOVES = (
    *("convert", "bitcast", "copy", "copy-start", "copy-done", "reshape", "transpose", "select"),
    "collective-permute-done",
)
"""Operations that may stand between a permutation and the addition to what it moved."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, as it stands in the program."""

    kind: str
    arrays: tuple[Array, ...]
    """Whole arrays: gathered, reduced, or held by a chip and exchanged."""
    groups: tuple[tuple[int, ...], ...]
    """Chips that take part together, by their place in the mesh; pairs of a permutation."""
    times: int
    op_name: str
    what: str = ""
    """The argument of the program that is moved as it is; '' for computed arrays."""
    filled: int = 0
    """Count of numbers that only fill the arrays up, so that they can be cut into equal parts."""
    adds: bool = False
    """True for a permutation to whose result the next chip adds: a part of a sum on its way around
    the chips, as products are summed while they are computed."""
    waits: bool = False
    """True in a loop whose number of rounds depends on data."""
    axes: str = ""
    """Axes of the mesh along which it runs, as `along` names them."""
    seconds: float = 0.0
    """Total over all executions."""

    @property
    def reduces(self) -> bool:
        return self.adds or self.kind in REDUCTIONS

    @property
    def share(self) -> float:
        """The part of its numbers that counts as reduced: an array's n parts go around a ring of n
        chips in n + 1 permutations, in two directions, the first two of them of zeros."""
        if not self.adds:
            return 1.0
        following, ring = {pair[0]: pair[1] for pair in self.groups}, 1
        first = place = self.groups[0][0]
        while (place := following.get(place, first)) != first:
            ring += 1
        return ring / (ring + 1)

    @property
    def numbers(self) -> float:
        """Count of numbers in the arrays, once; of a sum on its way those that are summed."""
        return self.share * (sum(array.size for array in self.arrays) - self.filled)

    @property
    def bytes(self) -> float:
        """Bytes of the whole arrays, once."""
        return sum(array.bytes for array in self.arrays)

    @property
    def total_bytes(self) -> float:
        """Bytes over all executions."""
        return self.bytes * self.times

    @property
    def dtype(self) -> str:
        return "+".join(sorted({array.dtype for array in self.arrays}))

    @property
    def size(self) -> int:
        """Number of chips that take part together."""
        return len(self.groups[0]) if self.kind != "collective-permute" else 2

    def along(self, mesh: Sequence[tuple[str, int]]) -> str:
        """The axes of a mesh, ('data', 16), ('fsdp', 16), along which the chips of a group differ.

        'data+fsdp' is all of both, 'part of data' a part of that axis.
        """
        places = [np.unravel_index(group, [size for _, size in mesh]) for group in self.groups]
        along = [
            (name, size)
            for axis, (name, size) in enumerate(mesh)
            if any(len(set(place[axis].tolist())) > 1 for place in places)
        ]
        names = "+".join(name for name, _ in along) or "none"
        if self.kind == "collective-permute" or self.size == math.prod(size for _, size in along):
            return names
        return f"part of {names}"

    def sent(self) -> float:
        """Bytes a chip sends, once.

        Around a ring in both directions gathering passes on all of the array but one part, reducing
        does it twice (scattering is half of that). An array that is exchanged or permuted is sent
        whole; the layout knows how far.
        """
        if self.kind in ("all-to-all", "collective-permute"):
            return self.bytes
        return (1 + (self.kind == "all-reduce")) * self.bytes * (self.size - 1) / self.size

    def bandwidth(self, layout: Layout, chip: Chip) -> float:
        """Bytes per second along the torus' axes that a group spans.

        Exchanged parts pass several links each. A permutation takes one direction of a link, and
        several of its parts may share one.
        """
        axis, group = chip.ici_bandwidth / chip.torus, self.groups[0]
        if self.kind == "collective-permute":
            return axis / 2 / max(1, layout.crowd(self.groups, chip))
        if self.kind == "all-to-all":
            return axis / (layout.way(group, chip) or 1)
        return axis * (layout.links(group, chip) or 1)


def collectives(
    module: Module, visits: Sequence[Visit], layout: Layout, chip: Chip
) -> Iterator[Collective]:
    """All collectives; one that runs beside other work counts where it is started."""
    started = set()
    for visit in visits:
        for where, inner in module.inside(visit.instruction):
            if inner.target == START:
                started |= {i.attribute("channel_id") for i in where.operands(inner)}
    for visit in visits:
        instruction = visit.instruction
        found = list(visit.parts(module))
        begins = any(inner.target == START for _, inner in found)
        scatters = instruction.opcode == "fusion" and any(
            inner.opcode in ("dynamic-slice", "slice") for _, inner in found
        )
        for where, inner in found:
            kind = inner.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if inner is not instruction and not begins:
                if inner.attribute("channel_id") in started:
                    continue  # a later part of one that another fusion starts
                if kind == "all-reduce" and scatters:
                    kind = "reduce-scatter"
            operands = where.operands(inner)
            collective = Collective(
                kind,
                _whole(kind, where, inner),
                _groups(inner, layout.size),
                visit.times,
                inner.op_name or instruction.op_name,
                argument(module, where, operands[0]),
                sum(_filled(where, operand) for operand in operands),
                kind == "collective-permute" and _is_added_to(module, where, inner),
                visit.waits,
            )
            seconds = visit.times * collective.sent() / collective.bandwidth(layout, chip)
            axes = collective.along(layout.axes)
            yield dataclasses.replace(collective, axes=axes, seconds=seconds)


def _is_added_to(module: Module, computation: Computation, permutation: Instruction) -> bool:
    """True if a permutation moves a part of a sum: the next chip adds to it. A gathered array goes
    into products instead, and one that is only moved into other arrays."""
    found = takers(module, computation, permutation, lambda _, user, __: user.opcode in MOVES)
    return any(user.opcode == "add" for user in found)


def _filled(computation: Computation, operand: Instruction) -> int:
    if operand.opcode != "pad":
        return 0
    return operand.arrays[0].size - computation.operands(operand)[0].arrays[0].size


def _whole(kind: str, computation: Computation, instruction: Instruction) -> tuple[Array, ...]:
    operands = tuple(a for o in computation.operands(instruction) for a in o.arrays)
    if kind != "all-gather":
        return operands
    results = instruction.arrays
    if instruction.opcode.endswith("-start"):  # (operands, results, ...)
        results = results[len(operands) : 2 * len(operands)]
    return results


def _groups(instruction: Instruction, chips: int) -> tuple[tuple[int, ...], ...]:
    if instruction.opcode.startswith("collective-permute"):
        text = _braced(instruction.attributes, "source_target_pairs=")
        pairs = re.findall(r"\{(\d+),(\d+)\}", text)
        return tuple((int(source), int(target)) for source, target in pairs)
    text = instruction.attributes.partition("replica_groups=")[2]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("["):
        found = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
        assert found is not None, text[:80]
        devices = _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))
        return tuple(map(tuple, devices.tolist()))
    lists = re.findall(r"\{([\d,]+)\}", _braced(instruction.attributes, "replica_groups="))
    groups = [tuple(map(int, group.split(","))) for group in lists]
    return tuple(groups) or (tuple(range(chips)),)


def _braced(text: str, before: str) -> str:
    """'{{0,1},{2,3}}' behind `before`."""
    rest = text.partition(before)[2]
    end = rest.find("}}")
    return rest[: end + 2] if rest.startswith("{{") else ""


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = [int(size) for size in dims.split(",")]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose([int(axis) for axis in order.split(",")]) if order else devices


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """mesh['a'=16,'b'=16], device_ids=([16,16]T(1,0)) {'a'}: one group along the axes named."""
    found = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", text)
    assert found is not None, text[:120]
    names = re.findall(r"'(\w+)'=(\d+)", found[1])
    sizes = [int(size) for _, size in names]
    devices = np.arange(math.prod(sizes))
    if found[2]:
        iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", found[2])
        listed = re.findall(r"\d+", found[2])
        devices = _iota(iota[1], iota[2]) if iota else np.array(list(map(int, listed)))
    devices = devices.reshape(sizes)
    # 'a':(4)2 is the part of 'a' of size 2 whose entries lie behind one of size 4.
    for name, before, part in re.findall(r"'(\w+)':\((\d+)\)(\d+)", found[3]):
        axis = [known for known, _ in names].index(name)
        after = devices.shape[axis] // (int(before) * int(part))
        devices = devices.reshape(
            *devices.shape[:axis], int(before), int(part), after, *devices.shape[axis + 1 :]
        )
        names[axis : axis + 1] = [("", before), (f"{name}:", part), ("", str(after))]
    wanted = [
        name + (":" if rest else "")
        for name, rest in re.findall(r"'(\w+)'(:\(\d+\)\d+)?", found[3])
    ]
    inner = [axis for axis, (name, _) in enumerate(names) if name in wanted]
    outer = [axis for axis in range(devices.ndim) if axis not in inner]
    length = math.prod(devices.shape[axis] for axis in inner)
    return tuple(map(tuple, devices.transpose(outer + inner).reshape(-1, length).tolist()))
