"""A compiled program, counted: memory, FLOPs, traffic, collectives, and how long it might take."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from adaperceiver_jax.aot.chips import Chip, Layout
from adaperceiver_jax.aot.collectives import Collective, collectives
from adaperceiver_jax.aot.hlo import Instruction, Module, parse
from adaperceiver_jax.aot.loops import Visit, unknown_loops, visits
from adaperceiver_jax.aot.matmuls import product
from adaperceiver_jax.aot.provenance import argument
from adaperceiver_jax.aot.softmaxes import Softmax, softmaxes
from adaperceiver_jax.aot.traffic import ONLY_NAMES, calls_host, hbm_bytes, host_transfers

PREFETCHES = ("copy-start", "slice-start")
ASYNC = ("AsyncCollectiveStart", "AsyncCollectiveDone")
RECOMPUTED = "rematted_computation"
"""In the names of operations that are done again."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip, as the compiler allots them."""

    arguments: int
    temporaries: int
    results: int
    """Without those that take an argument's place."""
    reused: int
    """Bytes of results that do."""

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results


@dataclasses.dataclass(frozen=True)
class Sent:
    """A collective, and what it costs."""

    collective: Collective
    axes: str
    what: str
    """The argument of the program that is moved as it is; '' for what is computed."""
    seconds: float
    """Of all its times."""

    @property
    def bytes(self) -> float:
        return self.collective.bytes * self.collective.times


@dataclasses.dataclass(frozen=True)
class Work:
    """A chip's, for one call of a program."""

    flops: float
    """Of matrix products."""
    tiled: float
    """The same, filled up to the matrix unit's tiles."""
    passes: float
    """The same, and float32 as often as it passes the unit: what its time is reckoned from."""
    hbm: float
    """Bytes."""
    seconds: float
    """Of all but collectives."""
    again: float = 0.0
    """FLOPs that are done again in the backward pass, instead of keeping what they give."""

    def __add__(self, other: Work) -> Work:
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Work(*(a + b for a, b in zip(mine, others, strict=True)))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of all operations of one name."""

    op_name: str
    seconds: float
    matmuls: float
    """Seconds of it in which matrix products take longer than traffic."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a compiled program."""

    name: str
    memory: Memory
    work: Work
    costs: tuple[Cost, ...]
    """The longest operations first."""
    sent: tuple[Sent, ...]
    host: tuple[Visit, ...]
    """What stops for the host."""
    unknown: tuple[Instruction, ...]
    """Loops whose rounds depend on data; counted as one."""
    waiting: tuple[str, ...]
    """Matrix products in them, by the names of their operations."""
    opaque: tuple[str, ...]
    """Calls of kernels, whose FLOPs are not counted: Pallas', or XLA's own for attention."""
    softmaxes: int
    spilled: tuple[Softmax, ...]
    """Of them those whose scores go through the large memory, a MiB or more each time."""
    kept: tuple[tuple[str, float], ...]
    """Donated arguments whose place no result takes, and their bytes."""
    donated: int
    """Donated arguments."""
    padding: float
    """Bytes that the arguments take beyond their own, in whole tiles."""
    seconds: float
    """That compilation took; 0 where a text was read."""


class DoesNotFitError(ValueError):
    """A program that needs more memory than the chip has."""


def compile_program(
    name: str, program: Any, arguments: Sequence[Any], donated: str, layout: Layout, chip: Chip
) -> Program:
    """Compiles a jitted program for chips that need not be there.

    Args:
      arguments: `jax.ShapeDtypeStruct`s, their shardings over a mesh of the chips.
      donated: the name of the program's argument that is.
      layout: of that mesh.
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
    """GiB that a program needs, from what the compiler says when there are not as many."""
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
    given = [p for p in module.entry.parameters if _is_of(p.op_name, donated)]
    return Program(
        name=name,
        memory=memory,
        work=work,
        costs=tuple(costs),
        sent=tuple(_sent(module, c, layout, chip) for c in collectives(module, run, layout.size)),
        host=tuple(host_transfers(run, module)),
        unknown=tuple(unknown_loops(module)),
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


def _is_of(op_name: str, donated: str) -> bool:
    return re.match(rf"{donated}(\W|$)", op_name) is not None


def _work(module: Module, run: Sequence[Visit], chip: Chip) -> tuple[Work, list[Cost]]:
    """Prefetches into the chip's own memory use the bandwidth that the rest leaves over."""
    work, costs = Work(0, 0, 0, 0, 0), dict[str, Cost]()
    for visit in run:
        found = [(visit.computation, visit.instruction), *module.inside(visit.instruction)]
        products = [
            (inner.op_name or visit.instruction.op_name, p)
            for where, inner in found
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


def _sent(module: Module, collective: Collective, layout: Layout, chip: Chip) -> Sent:
    axes = collective.axes(layout.axes)
    what = argument(module, collective.computation, collective.operand)
    seconds = collective.times * collective.sent() / _bandwidth(collective, layout, chip)
    return Sent(collective, axes, what, seconds)


def _bandwidth(collective: Collective, layout: Layout, chip: Chip) -> float:
    """Bytes a second, along the torus' axes that a group spans.

    What is exchanged passes several links, and of a permutation, which takes one direction, several
    parts may pass one.
    """
    axis = chip.ici_bandwidth / chip.torus
    group = collective.groups[0]
    if collective.kind == "collective-permute":
        return axis / 2 / max(1, layout.crowd(collective.groups, chip))
    if collective.kind == "all-to-all":
        return axis / (layout.way(group, chip) or 1)
    return axis * (layout.links(group, chip) or 1)


def _waiting(module: Module, run: Sequence[Visit]) -> Iterator[str]:
    for visit in run:
        found = [(visit.computation, visit.instruction), *module.inside(visit.instruction)]
        if visit.waits and any(product(where, inner) for where, inner in found):
            yield visit.instruction.op_name or visit.instruction.name


def _opaque(module: Module, run: Sequence[Visit]) -> Iterator[str]:
    for visit in run:
        for inner in (visit.instruction, *(inner for _, inner in module.inside(visit.instruction))):
            target = inner.attribute("custom_call_target").strip('"')
            if target and target not in (*ONLY_NAMES, *ASYNC) and not calls_host(inner):
                yield f"{target} {inner.op_name}".strip()
