"""Whether a compiled step is lean."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from adaperceiver_jax.aot.chips import GIB
from adaperceiver_jax.aot.program import Sent
from adaperceiver_jax.aot.report import Report

LARGE = 2**20
"""Bytes from which an array counts as large."""
LITTLE = 1024
"""Bytes up to which a collective counts as nothing."""
OWN = 0.9
"""The model's part of what is computed once."""
WEIGHTS = ("params", "constants")
"""Arguments of the gradients' program that FSDP gathers."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a lean step has."""

    good: bool
    what: str
    found: str


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
    moved = [s for s in report.gradients.sent if not s.collective.reduces]
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
        count > 0 and not spilled,
        "softmax stays on the chip",
        (f"{count - len(spilled)} of {count} do" if count else "none found, so none was judged")
        + (f", {sum(s.bytes for s in spilled) / 1e9:.1f} GB of the others' scores go through HBM")
        * bool(spilled),
    )
    yield _flops(report)
    yield _loops(report)
    opaque = [name for program in report.programs for name in program.opaque]
    yield Check(
        not opaque,
        "no kernel hides its FLOPs",
        f"{len(opaque)} custom calls" + "".join(f"; {name}" for name in opaque[:3]),
    )


def _flops(report: Report) -> Check:
    """Beside the model's there are attention's under masks, and the optimizer's."""
    work = report.work
    once = work.flops - work.again
    share = report.model_flops / once if once else 0.0
    return Check(
        share >= OWN,
        f"{OWN:.0%} of FLOPs are the model's",
        f"{share:.0%} of {once / 1e12:,.3g} TFLOPs; {work.again / 1e12:,.3g} more are done again",
    )


def _loops(report: Report) -> Check:
    """Rounds that nobody counts may hold little: numbers are drawn in them."""
    loops = sum(len(program.unknown) for program in report.programs)
    products = [name for program in report.programs for name in program.waiting]
    sent = [s.collective for p in report.programs for s in p.sent if s.collective.waits]
    large = [c for c in sent if c.bytes > LITTLE]
    most = max((c.bytes for c in sent), default=0)
    names = [*products, *(f"{c.kind} {c.op_name}" for c in large)]
    return Check(
        not names,
        "loops of unknown length hold nothing that counts",
        f"{loops} loops, in them {len(products)} matrix products and {len(sent)} collectives"
        + f", the largest of {most:,.0f} bytes a round" * bool(sent)
        + "".join(f"; {name}" for name in names[:3]),
    )


def _of_loss(sent: Sent) -> bool:
    """Whether the loss or its gradient asks for it: not the optimizer, nor drawing samples."""
    return "jvp(" in sent.collective.op_name


def _reductions(report: Report) -> Check:
    """With fsdp each gradient is scattered over it, and its part then reduced over data."""
    reduced = [s for s in report.gradients.sent if s.collective.reduces and _of_loss(s)]
    numbers = sum(s.collective.times * s.collective.numbers for s in reduced)
    filled = sum(s.collective.times * s.collective.filled for s in reduced)
    dtypes: dict[str, float] = defaultdict(float)
    for sent in reduced:
        for array in sent.collective.arrays:
            c = sent.collective
            dtypes[array.dtype] += array.bytes * c.times * c.share
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


def _most(amounts: Mapping[Any, float]) -> list[tuple[Any, float]]:
    return sorted(amounts.items(), key=lambda item: -item[1])
