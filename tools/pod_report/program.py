"""A compiled program, counted: memory, FLOPs, traffic, collectives, and the time it might take."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from tools.pod_report.chips import Chip
from tools.pod_report.collectives import DONE, START, Collective, collectives
from tools.pod_report.hlo import Instruction, Module, parse
from tools.pod_report.loops import Visit, visits
from tools.pod_report.matmuls import product
from tools.pod_report.topology import Layout
from tools.pod_report.traffic import (
    ONLY_NAMES,
    Softmax,
    calls_host,
    hbm_bytes,
    host_transfers,
    softmaxes,
)

PREFETCHES = ("copy-start", "slice-start")
RECOMPUTED = "rematted_computation"
"""Part of the names of operations that are computed again in the backward pass."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip, as the compiler allots them."""

    arguments: int
    temporaries: int
    results: int
    """Bytes of results in new memory."""
    reused: int
    """Bytes of results that take an argument's place."""

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results


@dataclasses.dataclass(frozen=True)
class Work:
    """A chip's work in one call of a program."""

    flops: float
    """FLOPs of matrix products."""
    tiled: float
    """The same, filled up to the matrix unit's tiles."""
    passes: float
    """The same, float32 counted once per pass through the unit: the time is estimated from it."""
    hbm: float
    """Bytes moved to and from the large memory."""
    seconds: float
    """Time of everything but collectives."""
    again: float = 0.0
    """FLOPs that are computed again in the backward pass instead of keeping their results."""

    def __add__(self, other: Work) -> Work:
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Work(*(a + b for a, b in zip(mine, others, strict=True)))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Time of all operations of one name."""

    op_name: str
    seconds: float
    matmuls: float
    """Seconds of it in which matrix products take longer than traffic."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Counts of a compiled program."""

    name: str
    memory: Memory
    work: Work
    costs: tuple[Cost, ...]
    """The longest operations first."""
    sent: tuple[Collective, ...]
    host: tuple[Visit, ...]
    """Instructions that stop for the host."""
    unknown: tuple[Instruction, ...]
    """Loops whose rounds depend on data; counted as one."""
    waiting: tuple[str, ...]
    """Matrix products in them, by the names of their operations."""
    opaque: tuple[str, ...]
    """Calls of kernels, whose FLOPs are not counted: Pallas', or XLA's own for attention."""
    softmaxes: int
    spilled: tuple[Softmax, ...]
    """Softmaxes whose scores go through the large memory, a MiB or more each time."""
    kept: tuple[tuple[str, float], ...]
    """Donated arguments whose place no result takes, and their bytes."""
    donated: int
    """Number of donated arguments."""
    padding: float
    """Bytes that the arguments take beyond their own, in whole tiles."""
    seconds: float
    """Seconds of compilation; 0 where a text was read."""


class DoesNotFitError(ValueError):
    """A program that needs more memory than the chip has."""


def compile_program(
    name: str, program: Any, arguments: Sequence[Any], donated: str, layout: Layout, chip: Chip
) -> Program:
    """Compiles a jitted program for chips that need not be there.

    Args:
      arguments: `jax.ShapeDtypeStruct`s with shardings over a mesh of the chips.
      donated: name of the program's donated argument.
      layout: places of that mesh.
    """
    began = time.perf_counter()
    lowered = program.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needs := _needed(str(error))) is None:
            raise
        raise DoesNotFitError(
            f"{name} needs {needs:.1f} GiB of a chip's {chip.hbm:.2f}: give it more chips, a "
            "smaller batch_size, more mesh.fsdp or accumulate"
        ) from error
    stats = compiled.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        reused=stats.alias_size_in_bytes,
    )
    seconds = time.perf_counter() - began
    return read_program(name, compiled.as_text(), memory, donated, layout, chip, seconds)


def _needed(said: str) -> float | None:
    """GiB that a program needs, from the compiler's error where the chip has less."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", said)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+G hbm", said)
    return float(found[1]) * 2.0 ** (10 * ("KMGT".index(found[2]) - 2)) if found else None


def read_program(
    name: str,
    text: str,
    memory: Memory,
    donated: str,
    layout: Layout,
    chip: Chip,
    seconds: float = 0.0,
) -> Program:
    """Counts a compiled program from its text."""
    module = parse(text)
    run = list(visits(module))
    work, costs = _work(module, run, chip)
    count, spilled = softmaxes(module, run)
    given = [p for p in module.entry.parameters if re.match(rf"{donated}(\W|$)", p.op_name)]
    return Program(
        name=name,
        memory=memory,
        work=work,
        costs=tuple(costs),
        sent=tuple(collectives(module, run, layout, chip)),
        host=tuple(host_transfers(run, module)),
        unknown=tuple(visit.instruction for visit in run if visit.endless),
        waiting=tuple(_waiting(module, run)),
        opaque=tuple(_opaque(module, run)),
        softmaxes=count,
        spilled=tuple(spilled),
        kept=tuple(
            (p.op_name, p.arrays[0].padded_bytes)
            for p in given
            if int(p.literal) not in module.aliased
        ),
        donated=len(given),
        padding=sum(
            array.padded_bytes - array.bytes
            for parameter in module.entry.parameters
            for array in parameter.arrays
        ),
        seconds=seconds,
    )


def _work(module: Module, run: Sequence[Visit], chip: Chip) -> tuple[Work, list[Cost]]:
    """Prefetches into the chip's own memory use the bandwidth that the rest leaves over."""
    work, costs = Work(0, 0, 0, 0, 0), dict[str, Cost]()
    for visit in run:
        products = [
            (inner.op_name or visit.instruction.op_name, p)
            for where, inner in visit.parts(module)
            if (p := product(where, inner)) is not None
        ]
        passes = sum(p.padded_flops(chip.mxu) * p.passes for _, p in products)
        moved = hbm_bytes(module, visit.computation, visit.instruction)
        times = passes / chip.flops, moved / chip.hbm_bandwidth
        prefetch = visit.instruction.opcode in PREFETCHES
        mine = Work(
            flops=visit.times * sum(p.flops for _, p in products),
            tiled=visit.times * sum(p.padded_flops(chip.mxu) for _, p in products),
            passes=visit.times * passes,
            hbm=visit.times * moved,
            seconds=0 if prefetch else visit.times * max(times),
            again=visit.times * sum(p.flops for name, p in products if RECOMPUTED in name),
        )
        work += mine
        if mine.seconds:
            name = visit.instruction.op_name or visit.instruction.opcode
            so_far = costs.get(name, Cost(name, 0, 0))
            matmuls = mine.seconds if times[0] > times[1] else 0
            costs[name] = Cost(name, so_far.seconds + mine.seconds, so_far.matmuls + matmuls)
    least = work.hbm / chip.hbm_bandwidth
    work = dataclasses.replace(work, seconds=max(work.seconds, least))
    return work, sorted(costs.values(), key=lambda cost: -cost.seconds)


def _waiting(module: Module, run: Sequence[Visit]) -> Iterator[str]:
    for visit in run:
        if visit.waits and any(product(*part) for part in visit.parts(module)):
            yield visit.instruction.op_name or visit.instruction.name


def _opaque(module: Module, run: Sequence[Visit]) -> Iterator[str]:
    for visit in run:
        for _, inner in visit.parts(module):
            known = inner.target in ("", START, DONE, *ONLY_NAMES)
            if not known and not calls_host(inner):
                yield f"{inner.target} {inner.op_name}".strip()
