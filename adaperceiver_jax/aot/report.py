"""What a step compiled to, for a person to read: a row of a table, a page, a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from adaperceiver_jax.aot.chips import GIB, Layout, Topology
from adaperceiver_jax.aot.program import Program, Sent, Work

LARGE = 2**20
"""Bytes from which an array counts as large."""
WHOLE = 2**22
"""Bytes from which an array counts as large that every chip holds whole, as the trainer counts."""
LISTED = 8
"""Of a long list."""
WEIGHTS = ("params", "constants")
"""Arguments of the gradients' program that FSDP gathers."""
REDUCTIONS = ("all-reduce", "reduce-scatter")
ASSUMPTIONS = """\
A step is its two programs; what the hosts do between them (SOAP's refresh) is not in it. Nothing
was run: FLOPs, bytes and collectives are read from the compiled programs, loops taken as often as
they run, and times are reckoned from them. An operation takes the longer of its matrix products,
at the chip's peak with whole tiles of the matrix unit and six passes a float32 product at highest
precision, and of its traffic at full HBM bandwidth; prefetches into the chip's own memory use what
bandwidth is left. Collectives use all links along the torus' axes they span, half of them where a
side is too short to close in a ring (v5e, v6e: below 16; v4, v5p: not a multiple of 4), with no
latency, and run beside everything else (the shorter time) or never (the longer). Loops whose length
the program does not tell count once; of branches all. Element-wise arithmetic is free. So the times
are bounds that a real step does not beat by much, and MFU (the model's FLOPs without recomputation
/ time / peak) is an estimate. HBM is that of the step: evaluation is a program of its own, and a
refresh has SOAP's new eigenvectors beside the old."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a lean step has."""

    good: bool
    what: str
    found: str


@dataclasses.dataclass(frozen=True)
class Report:
    """A step of a config, compiled for a topology."""

    name: str
    topology: Topology
    layout: Layout
    batch: int
    """Images a step, of all chips."""
    model_flops: float
    """A chip's, a step."""
    trained: int
    """Numbers that are trained."""
    gradients: Program
    apply: Program
    replicated: tuple[tuple[str, int], ...]
    """Large arguments that every chip holds whole, and their bytes."""
    meant: frozenset[str]
    """Of them those that a rule of the run wants so."""
    beside: tuple[float, float]
    """Bytes that a chip holds of the run, but not of the program's arguments, during each."""

    @property
    def programs(self) -> tuple[Program, Program]:
        return self.gradients, self.apply

    @property
    def needed(self) -> float:
        """Bytes of the chip's memory, at most."""
        totals = [program.memory.total for program in self.programs]
        return max(a + b for a, b in zip(totals, self.beside, strict=True))

    @property
    def work(self) -> Work:
        return self.gradients.work + self.apply.work

    def sending(self, program: Program) -> float:
        """Seconds of collectives."""
        return sum(sent.seconds for sent in program.sent)

    @property
    def seconds(self) -> tuple[float, float]:
        """A step's: collectives beside everything else, and never."""
        pairs = [(p.work.seconds, self.sending(p)) for p in self.programs]
        return sum(max(pair) for pair in pairs), sum(map(sum, pairs))

    def mfu(self, seconds: float) -> float:
        return self.model_flops / seconds / self.topology.chip.flops

    @property
    def fsdp(self) -> int:
        return dict(self.layout.axes).get("fsdp", 1)


def checks(report: Report) -> Iterator[Check]:
    """Whether a step is lean."""
    chip = report.topology.chip
    room = chip.hbm * GIB - report.needed
    yield Check(
        room >= 0,
        "it fits",
        f"{report.needed / GIB:.2f} GiB of {chip.hbm:.2f}, {room / GIB:.2f} left",
    )
    silent = [(name, amount) for name, amount in report.replicated if name not in report.meant]
    size = sum(amount for _, amount in silent)
    names = ", ".join(name for name, _ in silent[:3])
    ruled = sum(amount for _, amount in report.replicated) - size
    yield Check(
        report.fsdp == 1 or not silent,
        "no large array is replicated but by a rule",
        f"{len(silent)} of 4 MiB or more, {size / GIB:.2f} GiB"
        + (" (fsdp is 1)" if report.fsdp == 1 else f": {names}" if names else "")
        + (f"; by rules {ruled / GIB:.2f} GiB" if ruled else ""),
    )
    host = [visit for program in report.programs for visit in program.host]
    yield Check(
        not host,
        "nothing goes to the host",
        f"{len(host)} transfers"
        + "".join(f"; {v.instruction.opcode} {v.instruction.op_name}" for v in host[:3]),
    )
    moved = [s for s in report.gradients.sent if s.collective.kind not in REDUCTIONS]
    weights = sum(s.bytes for s in moved if s.what.startswith(WEIGHTS))
    of_loss = [
        s for s in moved if _of_loss(s) and not s.what.startswith(WEIGHTS) and s.bytes >= LARGE
    ]
    others = sum(s.bytes for s in moved) - weights - sum(s.bytes for s in of_loss)
    yield Check(
        not of_loss,
        "the loss gathers nothing but weights",
        f"{weights / 1e6:,.1f} MB of weights, {sum(s.bytes for s in of_loss) / 1e6:,.1f} MB of "
        f"what it computes; the optimizer and the drawing of samples {others / 1e6:,.1f} MB",
    )
    yield _reductions(report)
    kept = [(name, amount) for p in report.programs for name, amount in p.kept if amount >= LARGE]
    donated = sum(program.donated for program in report.programs)
    yield Check(
        not kept,
        "donated memory is used again",
        f"{donated} arrays donated, {sum(p.memory.reused for p in report.programs) / GIB:.2f} GiB "
        f"used again; {len(kept)} large ones not" + "".join(f"; {name}" for name, _ in kept[:3]),
    )
    spilled = [s for program in report.programs for s in program.spilled]
    count = sum(program.softmaxes for program in report.programs)
    yield Check(
        not spilled,
        "softmax stays on the chip",
        f"{count - len(spilled)} of {count} do"
        + (f", {sum(s.bytes for s in spilled) / 1e9:.1f} GB of the others' scores go through HBM")
        * bool(spilled),
    )


def _of_loss(sent: Sent) -> bool:
    """Whether the loss or its gradient asks for it: not the optimizer, nor drawing samples."""
    return "jvp(" in sent.collective.op_name


def _reductions(report: Report) -> Check:
    """With fsdp each gradient is scattered over it, and its part then reduced over data."""
    reduced = [s for s in report.gradients.sent if s.collective.kind in REDUCTIONS and _of_loss(s)]
    numbers = sum(s.collective.times * s.collective.numbers for s in reduced)
    filled = sum(s.collective.times * s.collective.filled for s in reduced)
    dtypes: dict[str, float] = defaultdict(float)
    for sent in reduced:
        for array in sent.collective.arrays:
            dtypes[array.dtype] += array.bytes * sent.collective.times
    times = numbers / max(1, report.trained)
    once = 1 + (1 / report.fsdp if report.fsdp > 1 else 0)
    alone = report.layout.size == 1
    return Check(
        alone or 0.5 < times <= 1.15 * once,
        "gradients are reduced once",
        f"{times:.2f} numbers reduced for each that is trained: "
        + (", ".join(f"{n / 1e6:,.1f} MB {d}" for d, n in _most(dtypes) if n > 5e4) or "none")
        + f", {filled / max(1, numbers):.0%} more to fill up parts" * (filled > 0),
    )


def _number(value: float) -> str:
    """Three digits, however large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _most(amounts: Mapping[Any, float]) -> list[tuple[Any, float]]:
    return sorted(amounts.items(), key=lambda item: -item[1])


def table(reports: Sequence[Report | tuple[str, str, str]]) -> str:
    """A Markdown row a report; of a step that was refused (config, topology, why)."""
    lines = [
        "| config | topology | data x fsdp | batch | HBM a chip (GiB): arguments, temporaries, "
        "needed | TFLOPs a chip: model, compiled, as run | HBM traffic, collectives (GB) | "
        "step (ms) | MFU | not lean |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        if not isinstance(report, Report):
            name, topology, why = report
            lines.append(f"| {name} | {topology} | - | - | {why} | - | - | - | - | - |")
            continue
        work, chip = report.work, report.topology.chip
        short, long = report.seconds
        sent = sum(s.bytes for program in report.programs for s in program.sent)
        memory = [program.memory for program in report.programs]
        bad = [check.what for check in checks(report) if not check.good]
        cells = [
            report.name,
            report.topology.name,
            " x ".join(str(size) for _, size in report.layout.axes),
            f"{report.batch:,}",
            f"{_number(max(m.arguments for m in memory) / GIB)}, "
            f"{_number(max(m.temporaries for m in memory) / GIB)}, "
            f"{report.needed / GIB:.2f} of {chip.hbm:.2f}",
            ", ".join(_number(n / 1e12) for n in (report.model_flops, work.flops, work.passes)),
            f"{_number(work.hbm / 1e9)}, {_number(sent / 1e9)}",
            f"{_number(1e3 * short)} to {_number(1e3 * long)}",
            f"{report.mfu(long):.0%} to {report.mfu(short):.0%}",
            "; ".join(f"not: {what}" for what in bad) or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(report: Report) -> str:
    """One step in full, as Markdown."""
    chip, axes = report.topology.chip, ", ".join(f"{n} {s}" for n, s in report.layout.axes)
    lines = [
        f"### {report.name} on {report.topology.name}",
        "",
        f"{report.layout.size} chips, hosts {report.topology.hosts} ({axes}), "
        f"{report.batch:,} images a step, {report.trained / 1e6:.1f} M numbers trained.",
        "",
        "| a chip and step | gradients | apply |",
        "|---|---|---|",
    ]

    def row(what: str, values: Sequence[str]) -> None:
        lines.append(f"| {what} | {' | '.join(values)} |")

    programs = report.programs
    row("arguments (GiB)", [_number(p.memory.arguments / GIB) for p in programs])
    row("of them padding", [_number(p.padding / GIB) for p in programs])
    row("temporaries", [_number(p.memory.temporaries / GIB) for p in programs])
    row("results in new memory", [_number(p.memory.results / GIB) for p in programs])
    row("held beside", [_number(amount / GIB) for amount in report.beside])
    row("TFLOPs of matrix products", [_number(p.work.flops / 1e12) for p in programs])
    row("with whole tiles", [_number(p.work.tiled / 1e12) for p in programs])
    row("and float32 in passes", [_number(p.work.passes / 1e12) for p in programs])
    row("HBM traffic (GB)", [_number(p.work.hbm / 1e9) for p in programs])
    row("ms of all but collectives", [_number(1e3 * p.work.seconds) for p in programs])
    row("ms of collectives", [_number(1e3 * report.sending(p)) for p in programs])
    row("loops of unknown length", [str(len(p.unknown)) for p in programs])
    row("compiled in (s)", [f"{p.seconds:.0f}" for p in programs])
    short, long = report.seconds
    lines += [
        "",
        f"The model's {_number(report.model_flops / 1e12)} TFLOPs take "
        f"{_number(1e3 * report.model_flops / chip.flops)} ms at {chip.flops / 1e12:.0f} TFLOP/s; "
        f"the step takes {_number(1e3 * short)} to {_number(1e3 * long)} ms, MFU "
        f"{report.mfu(long):.1%} to {report.mfu(short):.1%}.",
        "",
        "| program | collective | axes | dtype | times | MB | ms | of |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for program in programs:
        lines += _collectives(program)
    if report.replicated:
        names = ", ".join(
            f"{name} {amount / 2**20:,.0f}" for name, amount in report.replicated[:LISTED]
        )
        more = len(report.replicated) - LISTED
        lines += ["", f"Every chip holds whole (MiB): {names}" + f", {more} more" * (more > 0)]
    lines += [
        "",
        "| program | longest operations | ms | bound by matrix products |",
        "|---|---|---|---|",
    ]
    for program in programs:
        lines += [
            f"| {program.name} | {_short(cost.op_name)} | {_number(1e3 * cost.seconds)} | "
            f"{cost.matmuls / cost.seconds:.0%} |"
            for cost in program.costs[:6]
        ]
    lines.append("")
    for check in checks(report):
        lines.append(f"- {'yes' if check.good else '**no**'}: {check.what}: {check.found}")
    for program in programs:
        for softmax in sorted(program.spilled, key=lambda s: -s.bytes)[:4]:
            lines.append(
                f"  - {softmax.bytes / 1e9:.2f} GB: {_short(softmax.op_name)} {softmax.dims}"
            )
    return "\n".join(lines)


def _collectives(program: Program) -> list[str]:
    """A row a kind, axes, dtype and what it is of, the longest first."""
    rows: dict[tuple[str, str, str, str], list[Sent]] = defaultdict(list)
    for sent in program.sent:
        c = sent.collective
        of = "" if c.kind in REDUCTIONS else "given" if sent.what else "computed"
        rows[c.kind, sent.axes, c.dtype, of].append(sent)
    lines = []
    for key, group in sorted(rows.items(), key=lambda item: -sum(s.seconds for s in item[1])):
        largest = max(group, key=lambda s: s.bytes)
        kind, axes, dtype, of = key
        most = largest.what or _short(largest.collective.op_name)
        lines.append(
            f"| {program.name} | {kind} | {axes} | {dtype} | "
            f"{sum(s.collective.times for s in group)} | "
            f"{sum(s.bytes for s in group) / 1e6:,.1f} | "
            f"{_number(1e3 * sum(s.seconds for s in group))} | "
            f"{of + ', ' if of else ''}the most of {most} |"
        )
    return lines


def _short(op_name: str) -> str:
    """The last names of a path, which say most, and whether it is done again or backward."""
    before = "backward " * ("transpose(" in op_name)
    if "rematted_computation" in op_name:
        before = "again "
    return before + "/".join(op_name.split("/")[-4:])


def replicated(arguments: Any) -> tuple[tuple[str, int], ...]:
    """Of shapes with shardings, the large ones that every chip holds whole; the largest first."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= WHOLE and leaf.sharding.is_fully_replicated:
            found.append((jax.tree_util.keystr(path, simple=True, separator="/"), size))
    return tuple(sorted(found, key=lambda item: -item[1]))


def held(shapes: Any) -> int:
    """Bytes a chip of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
