"""How fast compiled programs are: what they are, their times in turn, a table of both."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from adaperceiver_jax.evaluate.costs import memory_of
from adaperceiver_jax.evaluate.csv_rows import csv_rows
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.machine import Ceiling, described
from adaperceiver_jax.evaluate.turns import Turns, take_turns
from adaperceiver_jax.models.extract import extract

SubNetwork = tuple[int, int, int]
"""(num_tokens, width, depth)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Something compiled that is to be timed."""

    what: str
    sub_network: SubNetwork | None
    """None of a model that has none, and of a training step, which is of all of them."""
    batch: int
    call: Callable[[], Any]
    """Computes, and waits for it."""
    flops: float
    """Of a call: matrix products, a multiply-add as 2."""
    least_bytes: float
    """That a device must read or write in a call: weights in use, inputs, outputs."""
    memory: float | None
    """Bytes of the device that the program needs with all it is given; None where the compiler
    does not say."""
    compile_seconds: float
    devices: int = 1

    @property
    def name(self) -> str:
        return named(self.sub_network, self.batch, self.what)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """A program's times, and what they come to; the columns of the CSV."""

    what: str
    num_tokens: int | None
    width: int | None
    depth: int | None
    batch: int
    dtype: str
    device: str
    devices: int
    compile_s: float
    repeats: int
    median_ms: float
    quarter_ms: float
    """A quarter of the calls took no longer."""
    three_quarters_ms: float
    images_per_second: float
    memory_mib: float | None
    gflops: float
    """Of a call."""
    gflops_per_second: float
    of_ceiling: float
    """gflops_per_second over what all devices do in products of large matrices."""
    floor_ms: float
    """FLOPs over the ceiling, or bytes over the bandwidth, whichever is more."""
    ceiling_gflops_per_second: float
    """Of one device, as measured."""
    bandwidth_gb_per_second: float
    machine: str
    """With the date and JAX's version."""


COLUMNS = tuple(field.name for field in dataclasses.fields(Speed))


def forward_program(
    model: nn.Module, params: Any, images: jax.Array, sub_network: SubNetwork | None
) -> Program:
    """A model's call on images (B, H, W, C), compiled."""
    config: Any = model.config
    chosen: dict[str, Any] = {}
    if sub_network is not None:
        chosen = dict(zip(("num_tokens", "width", "depth"), sub_network, strict=True))
    batch, height, width, _ = images.shape
    # Counted first, since it refuses what cannot be run.
    count = flops(config, **chosen, image_size=(height, width), batch_size=batch).total * batch

    def run(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, images, **chosen)

    began = time.perf_counter()
    compiled = jax.jit(run).lower(params, images).compile()
    seconds = time.perf_counter() - began
    outputs = jax.eval_shape(run, params, images)
    return Program(
        what="forward",
        sub_network=sub_network,
        batch=batch,
        call=lambda: jax.block_until_ready(compiled(params, images)),
        flops=count,
        least_bytes=_weights(model, params, sub_network) + size_of(images) + size_of(outputs),
        memory=memory_of(compiled),
        compile_seconds=seconds,
    )


def _weights(model: Any, params: Any, sub_network: SubNetwork | None) -> int:
    """Bytes of the weights that a sub-network uses."""
    if sub_network is None:
        return size_of(params)
    _, width, depth = sub_network
    return size_of(jax.eval_shape(lambda p: extract(model, p, width, depth)[1], params))


def named(sub_network: SubNetwork | None, batch: int, what: str = "forward") -> str:
    """'forward, t, w, l = 128, 624, 14, batch 8'."""
    which = "" if sub_network is None else f", t, w, l = {', '.join(map(str, sub_network))}"
    return f"{what}{which}, batch {batch}"


def size_of(tree: Any) -> int:
    """Bytes of a tree's arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def time_programs(
    programs: Sequence[Program], repeats: int, note: Callable[[str], None] = lambda text: None
) -> Turns:
    """Times the programs, which take turns."""
    return take_turns({program.name: program.call for program in programs}, repeats, note)


def speeds_of(
    programs: Sequence[Program], turns: Turns, dtype: str, ceiling: Ceiling
) -> list[Speed]:
    """What the programs' times come to on a machine that does so much at most."""
    speeds = []
    for program in programs:
        seconds = turns.wall[program.name]
        repeats = len(seconds)
        quarters = statistics.quantiles(seconds, n=4, method="inclusive") if repeats > 1 else None
        median = statistics.median(seconds)
        low, high = (quarters[0], quarters[2]) if quarters else (median, median)
        t, w, l = program.sub_network or (None, None, None)
        n = program.devices
        speeds.append(
            Speed(
                what=program.what,
                num_tokens=t,
                width=w,
                depth=l,
                batch=program.batch,
                dtype=dtype,
                device=jax.devices()[0].device_kind,
                devices=n,
                compile_s=program.compile_seconds,
                repeats=repeats,
                median_ms=1e3 * median,
                quarter_ms=1e3 * low,
                three_quarters_ms=1e3 * high,
                images_per_second=program.batch / median,
                memory_mib=None if program.memory is None else program.memory / 2**20,
                gflops=program.flops / 1e9,
                gflops_per_second=program.flops / median / 1e9,
                of_ceiling=program.flops / median / (n * ceiling.flops),
                floor_ms=1e3 * ceiling.floor(program.flops / n, program.least_bytes),
                ceiling_gflops_per_second=ceiling.flops / 1e9,
                bandwidth_gb_per_second=ceiling.bandwidth / 1e9,
                machine=described(),
            )
        )
    return speeds


def csv_text(speeds: Sequence[Speed]) -> str:
    """The content of a CSV file, a line a program; what is not known is empty."""
    return csv_rows(COLUMNS, speeds)


def table(speeds: Sequence[Speed]) -> str:
    """The same for reading."""
    rows: list[tuple[str, ...]] = [
        (
            *("", "tokens", "width", "depth", "batch", "compile s", "median ms", "quartiles"),
            *("images/s", "MiB", "GFLOPs", "GFLOP/s", "of ceiling", "floor ms"),
        )
    ]
    for s in speeds:
        rows.append(
            (
                *(s.what, *(str(x or "") for x in (s.num_tokens, s.width, s.depth, s.batch))),
                *(f"{s.compile_s:.1f}", f"{s.median_ms:.1f}"),
                f"{s.quarter_ms:.1f} to {s.three_quarters_ms:.1f}",
                f"{s.images_per_second:.1f}",
                "" if s.memory_mib is None else f"{s.memory_mib:.0f}",
                *(f"{s.gflops:.1f}", f"{s.gflops_per_second:.0f}", f"{s.of_ceiling:.0%}"),
                f"{s.floor_ms:.1f}",
            )
        )
    columns = list(zip(*rows, strict=True))
    lengths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.rjust(length) for cell, length in zip(row, lengths, strict=True)).rstrip()
        for row in rows
    )
