"""Reports of compiled steps as Markdown: a page for one, a table for several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tools.pod_report.collectives import Collective
from tools.pod_report.program import Program
from tools.pod_report.report import Report, checks
from tools.pod_report.topology import GIB

LISTED = 8
"""Entries shown of a long list."""
ASSUMPTIONS = """\
A step is its two programs; what the hosts do between them (SOAP's refresh) is not in it. Nothing
was run: FLOPs, bytes and collectives are read from the compiled programs, loops taken as often as
they run; times are estimated from them. An operation takes the longer of its matrix products, at
the chip's peak with whole tiles of the matrix unit and six passes a float32 product at highest
precision, and of its traffic at full HBM bandwidth; prefetches into the chip's own memory use what
bandwidth is left. Collectives use all links along the torus' axes they span, half of them where a
side is too short to close in a ring (v5e, v6e: below 16; v4, v5p: not a multiple of 4), with no
latency, and run beside everything else (the shorter time) or never (the longer). What goes to a
chip that is no neighbour takes every link on its way, axis by axis. Loops whose length the program
does not tell count once; of branches all. Element-wise arithmetic is free. So the times are bounds
that a real step does not beat by much, and MFU (the model's FLOPs without recomputation / time /
peak) is an estimate. HBM is that of the step: evaluation is a program of its own, and a refresh has
SOAP's new eigenvectors beside the old."""


def _number(value: float) -> str:
    """A number with three digits, more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(reports: Sequence[Report | tuple[str, str, str]]) -> str:
    """A Markdown row per report; a refused step is given as (config, topology, why)."""
    lines = [
        "| config | topology | data x fsdp | batch | HBM a chip (GiB): arguments, temporaries, "
        "needed | TFLOPs a chip: model, compiled, as run | HBM traffic, collectives (GB) | "
        "step (ms) | MFU | not lean |",
        "|" + "---|" * 10,
    ]
    for report in reports:
        if not isinstance(report, Report):
            name, topology, why = report
            lines.append(f"| {name} | {topology} | - | - | {why} | - | - | - | - | - |")
            continue
        work, chip = report.work, report.topology.chip
        short, long = report.seconds
        sent = sum(c.total_bytes for program in report.programs for c in program.sent)
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

    programs = report.programs
    amounts: dict[str, Sequence[float]] = {
        "arguments (GiB)": [p.memory.arguments / GIB for p in programs],
        "of them padding": [p.padding / GIB for p in programs],
        "temporaries": [p.memory.temporaries / GIB for p in programs],
        "results in new memory": [p.memory.results / GIB for p in programs],
        "held beside": [amount / GIB for amount in report.beside],
        "TFLOPs of matrix products": [p.work.flops / 1e12 for p in programs],
        "with whole tiles": [p.work.tiled / 1e12 for p in programs],
        "and float32 in passes": [p.work.passes / 1e12 for p in programs],
        "HBM traffic (GB)": [p.work.hbm / 1e9 for p in programs],
        "ms of all but collectives": [1e3 * p.work.seconds for p in programs],
        "ms of collectives": [1e3 * report.sending(p) for p in programs],
        "loops of unknown length": [len(p.unknown) for p in programs],
        "compiled in (s)": [round(p.seconds) for p in programs],
    }
    for what, values in amounts.items():
        lines.append(f"| {what} | {' | '.join(map(_number, values))} |")
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
    """A row per kind, axes, dtype and kind of array, the longest first."""
    rows: dict[tuple[str, str, str, str], list[Collective]] = defaultdict(list)
    for c in program.sent:
        of = "given" if c.what else "computed"
        if c.reduces:
            of = "summed" if c.adds else ""
        rows[c.kind, c.axes, c.dtype, of].append(c)
    lines = []
    for key, group in sorted(rows.items(), key=lambda item: -sum(c.seconds for c in item[1])):
        largest = max(group, key=lambda c: c.total_bytes)
        kind, axes, dtype, of = key
        most = largest.what or _short(largest.op_name)
        lines.append(
            f"| {program.name} | {kind} | {axes} | {dtype} | {sum(c.times for c in group)} | "
            f"{sum(c.total_bytes for c in group) / 1e6:,.1f} | "
            f"{_number(1e3 * sum(c.seconds for c in group))} | "
            f"{of + ', ' if of else ''}the most of {most} |"
        )
    return lines


def _short(op_name: str) -> str:
    """The last names of a path, which say most, after "again" or "backward" where it is so."""
    before = "backward " * ("transpose(" in op_name)
    if "rematted_computation" in op_name:
        before = "again "
    return before + "/".join(op_name.split("/")[-4:])
