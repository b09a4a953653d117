"""A compiled step: both its programs, what the run holds beside them, and whether it is lean."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax

from adaperceiver_jax.train.sharding import LARGE as WHOLE
from tools.pod_report.collectives import Collective
from tools.pod_report.program import Program, Work
from tools.pod_report.topology import GIB, Layout, Topology

LARGE = 2**20
"""Bytes from which an array that is gathered or kept counts as large."""
LITTLE = 1024
"""Bytes up to which a collective counts as nothing."""
OWN = 0.9
"""Least part of the FLOPs, each computed once, that must be the model's."""
WEIGHTS = ("params", "constants")
"""Arguments of the gradients' program that FSDP gathers."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A step of a config, compiled for a topology."""

    name: str
    topology: Topology
    layout: Layout
    batch: int
    """Images per step, over all chips."""
    model_flops: float
    """The model's FLOPs per chip and step."""
    trained: int
    """Count of trained numbers."""
    gradients: Program
    apply: Program
    replicated: tuple[tuple[str, int], ...]
    """Large arguments that every chip holds whole, and their bytes."""
    meant: frozenset[str]
    """Those of them that a rule of the run wants so."""
    beside: tuple[float, float]
    """Bytes of the run that a chip holds during each program, not counting its arguments."""

    @property
    def programs(self) -> tuple[Program, Program]:
        return self.gradients, self.apply

    @property
    def needed(self) -> float:
        """Most bytes of the chip's memory."""
        totals = [program.memory.total for program in self.programs]
        return max(a + b for a, b in zip(totals, self.beside, strict=True))

    @property
    def work(self) -> Work:
        return self.gradients.work + self.apply.work

    def sending(self, program: Program) -> float:
        """Seconds of collectives."""
        return sum(collective.seconds for collective in program.sent)

    @property
    def seconds(self) -> tuple[float, float]:
        """A step's time: collectives beside everything else, and never."""
        pairs = [(p.work.seconds, self.sending(p)) for p in self.programs]
        return sum(max(pair) for pair in pairs), sum(map(sum, pairs))

    def mfu(self, seconds: float) -> float:
        return self.model_flops / seconds / self.topology.chip.flops

    @property
    def fsdp(self) -> int:
        return dict(self.layout.axes).get("fsdp", 1)


def replicated(arguments: Any) -> tuple[tuple[str, int], ...]:
    """(path, bytes) of large shapes that every chip holds whole; the largest first."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        size = leaf.size * leaf.dtype.itemsize
        if size >= WHOLE and leaf.sharding.is_fully_replicated:
            found.append((jax.tree_util.keystr(path, simple=True, separator="/"), size))
    return tuple(sorted(found, key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a lean step has."""

    good: bool
    what: str
    found: str


def checks(report: Report) -> Iterator[Check]:
    """The checks of a step."""
    chip, programs = report.topology.chip, report.programs
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
    host = [v.instruction for program in programs for v in program.host]
    found = [f"{len(host)} transfers", *(f"{i.opcode} {i.op_name}" for i in host[:3])]
    yield Check(not host, "nothing goes to the host", "; ".join(found))
    yield _gathers(report)
    yield _reductions(report)
    kept = [name for p in programs for name, amount in p.kept if amount >= LARGE]
    donated = sum(program.donated for program in programs)
    reused = sum(program.memory.reused for program in programs) / GIB
    found = [f"{donated} arrays donated, {reused:.2f} GiB used again"]
    found += [f"{len(kept)} large ones not", *kept[:3]]
    yield Check(not kept, "donated memory is used again", "; ".join(found))
    spilled = [s for program in programs for s in program.spilled]
    count = sum(program.softmaxes for program in programs)
    judged = f"{count - len(spilled)} of {count} do" if count else "none found, so none was judged"
    if spilled:
        scores = sum(s.bytes for s in spilled) / 1e9
        judged += f", {scores:.1f} GB of the others' scores go through HBM"
    yield Check(count > 0 and not spilled, "softmax stays on the chip", judged)
    # Next to the model's FLOPs there are attention's under masks, and the optimizer's.
    once = report.work.flops - report.work.again
    share = report.model_flops / once if once else 0.0
    yield Check(
        share >= OWN,
        f"{OWN:.0%} of FLOPs are the model's",
        f"{share:.0%} of {once / 1e12:,.3g} TFLOPs; {report.work.again / 1e12:,.3g} more are done "
        "again",
    )
    yield _loops(report)
    opaque = [name for program in programs for name in program.opaque]
    found = [f"{len(opaque)} custom calls", *opaque[:3]]
    yield Check(not opaque, "no kernel hides its FLOPs", "; ".join(found))


def _gathers(report: Report) -> Check:
    moved = [c for c in report.gradients.sent if not c.reduces]
    weights = sum(c.total_bytes for c in moved if c.what.startswith(WEIGHTS))
    computed = [c for c in moved if _of_loss(c) and not c.what.startswith(WEIGHTS)]
    of_loss = sum(c.total_bytes for c in computed if c.total_bytes >= LARGE)
    others = sum(c.total_bytes for c in moved) - weights - of_loss
    return Check(
        not of_loss,
        "the loss gathers nothing but weights",
        f"{weights / 1e6:,.1f} MB of weights, {of_loss / 1e6:,.1f} MB of what it computes; the "
        f"optimizer and the drawing of samples {others / 1e6:,.1f} MB",
    )


def _of_loss(collective: Collective) -> bool:
    """True if the loss or its gradient asks for it: not the optimizer, nor drawing samples."""
    return "jvp(" in collective.op_name


def _reductions(report: Report) -> Check:
    """With fsdp each gradient is scattered over it, and its part then reduced over data."""
    reduced = [c for c in report.gradients.sent if c.reduces and _of_loss(c)]
    numbers = sum(c.times * c.numbers for c in reduced)
    filled = sum(c.times * c.filled for c in reduced)
    dtypes: dict[str, float] = defaultdict(float)
    for c in reduced:
        for array in c.arrays:
            dtypes[array.dtype] += array.bytes * c.times * c.share
    times = numbers / max(1, report.trained)
    once = 1 + (1 / report.fsdp if report.fsdp > 1 else 0)
    most = sorted(dtypes.items(), key=lambda item: -item[1])
    sizes = [f"{n / 1e6:,.1f} MB {dtype}" for dtype, n in most if n > 5e4]
    return Check(
        report.layout.size == 1 or 0.5 < times <= 1.15 * once,
        "gradients are reduced once",
        f"{times:.2f} numbers reduced for each that is trained: {', '.join(sizes) or 'none'}"
        + f", {filled / max(1, numbers):.0%} more to fill up parts" * (filled > 0),
    )


def _loops(report: Report) -> Check:
    """Rounds that nobody counts may hold little: random numbers are drawn in them."""
    loops = sum(len(program.unknown) for program in report.programs)
    products = [name for program in report.programs for name in program.waiting]
    sent = [c for program in report.programs for c in program.sent if c.waits]
    large = [f"{c.kind} {c.op_name}" for c in sent if c.bytes > LITTLE]
    most = max((c.bytes for c in sent), default=0)
    return Check(
        not products and not large,
        "loops of unknown length hold nothing that counts",
        f"{loops} loops, in them {len(products)} matrix products and {len(sent)} collectives"
        + f", the largest of {most:,.0f} bytes a round" * bool(sent)
        + "".join(f"; {name}" for name in [*products, *large][:3]),
    )
