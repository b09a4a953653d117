"""Speed of compiled programs, next to the most that this machine does, and a table of both."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adaperceiver_jax.data.loading import cores
from adaperceiver_jax.evaluate.costs import memory_of
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.models.extract import extract
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.sharding import held
from tools.shapes import make_step, teacher_made_up

SubNetwork = tuple[int, int, int]
"""(num_tokens, width, depth)"""
TRIES = 9


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The most that one device does, the best of some tries: the floor under every time."""

    flops: float
    """Per second, in products of square matrices."""
    bandwidth: float
    """Bytes per second, read and written."""

    def or_better(self, other: Ceiling) -> Ceiling:
        """The more of two measurements: what else runs on a machine makes it slower for minutes."""
        return Ceiling(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def floor(self, flops: float, read_or_written: float) -> float:
        """The least seconds for this number of operations and of bytes of memory."""
        return max(flops / self.flops, read_or_written / self.bandwidth)


class Ceilings:
    """The best ceiling so far, measured between other things. Products are of this dtype, or of
    float32 where those are quicker, as bfloat16's on CPUs can be slower."""

    def __init__(self, dtype: DTypeLike, also: Callable[[], float] = lambda: 0.0):
        """`also` gives another library's FLOP/s in products of large matrices."""
        self.dtype, self.also = dtype, also
        self.best = Ceiling(0.0, 0.0)
        self.measure()

    def measure(self) -> Ceiling:
        """Measures once more; the best so far."""
        for dtype in dict.fromkeys((jnp.dtype(self.dtype), jnp.dtype(jnp.float32))):
            self.best = self.best.or_better(measure_ceiling(dtype))
        self.best = self.best.or_better(Ceiling(self.also(), 0.0))
        return self.best


def measure_ceiling(
    dtype: DTypeLike,
    sides: tuple[int, ...] | None = None,
    megabytes: int | None = None,
    tries: int = TRIES,
) -> Ceiling:
    """Multiplies matrices of these sides, and passes over an array of so many MB; None is what the
    device needs to show all it can."""
    size = (megabytes or (1024 if jax.default_backend() == "cpu" else 4096)) * 2**20
    product = jax.jit(jnp.matmul)

    def squares(side: int) -> Callable[[], Any]:
        keys = jax.random.split(jax.random.key(0))
        factors = [jax.random.normal(key, (side, side), dtype) for key in keys]
        return lambda: jax.block_until_ready(product(*factors))

    best = most_flops(squares, sides, tries)
    # The result takes the place of the argument: fresh memory would first be made ready.
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = [jnp.zeros(size // 4, jnp.float32)]

    def pass_over() -> None:
        array[0] = jax.block_until_ready(step(array[0]))

    return Ceiling(best, 2 * size / _least(pass_over, tries))


def most_flops(
    squares: Callable[[int], Callable[[], Any]],
    sides: tuple[int, ...] | None = None,
    tries: int = TRIES,
) -> float:
    """The most FLOP/s of products of matrices; squares(side) is a call that multiplies two of this
    side and waits."""
    small = jax.default_backend() == "cpu"
    sides = sides or ((1024, 2048) if small else (4096, 8192, 16384))
    return max(2 * side**3 / _least(squares(side), tries) for side in sides)


def _least(call: Callable[[], Any], tries: int) -> float:
    """Seconds of the quickest of some calls, after one that compiles."""
    call()
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def described() -> str:
    """The line above a table of times: '2026-11-23, 2 cores of AMD EPYC, JAX 0.10.2', with a word
    on GLIBC_TUNABLES, by which the C library keeps memory (docs/performance.md)."""
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        device = f"{len(cores())} cores of {_processor() or device}"
        if tunables := os.environ.get("GLIBC_TUNABLES"):
            kept = "glibc.malloc.mmap_max=0" in tunables.split(":")
            device += ", GLIBC_TUNABLES set" if kept else f", GLIBC_TUNABLES={tunables}"
    return f"{datetime.date.today()}, {device}, JAX {jax.__version__}"


def _processor() -> str:
    """The CPU's name, '' where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program that is to be timed."""

    what: str
    sub_network: SubNetwork | None
    """None for a model that has none, and for a training step, which is of all of them."""
    batch: int
    call: Callable[[], Any]
    """Computes, and waits for it."""
    flops: float
    """Per call: matrix products, a multiply-add as 2."""
    least_bytes: float
    """Bytes that a device must read or write in a call: weights in use, inputs, outputs."""
    memory: float | None
    """Bytes of the device that the program needs with all it is given; None where the compiler
    does not say."""
    compile_seconds: float
    devices: int = 1

    @property
    def name(self) -> str:
        return named(self.sub_network, self.batch, self.what)


def named(sub_network: SubNetwork | None, batch: int, what: str = "forward") -> str:
    """'forward, t, w, l = 128, 624, 14, batch 8'."""
    which = "" if sub_network is None else f", t, w, l = {', '.join(map(str, sub_network))}"
    return f"{what}{which}, batch {batch}"


def forward_program(
    model: nn.Module, params: Any, images: jax.Array, sub_network: SubNetwork | None
) -> Program:
    """A model's call on images (B, H, W, C), compiled."""
    config: Any = model.config
    names = ("num_tokens", "width", "depth")
    chosen: dict[str, Any] = dict(zip(names, sub_network, strict=True)) if sub_network else {}
    batch, height, width, _ = images.shape
    # Counted first, since it refuses what cannot be run.
    count = flops(config, **chosen, image_size=(height, width), batch_size=batch).total * batch

    def run(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, images, **chosen)

    def used(params: Any) -> Any:
        return extract(model, params, *sub_network[1:])[1] if sub_network else params

    began = time.perf_counter()
    compiled = jax.jit(run).lower(params, images).compile()
    seconds = time.perf_counter() - began
    touched = (jax.eval_shape(used, params), images, jax.eval_shape(run, params, images))
    return Program(
        what="forward",
        sub_network=sub_network,
        batch=batch,
        call=lambda: jax.block_until_ready(compiled(params, images)),
        flops=count,
        least_bytes=size_of(touched),
        memory=memory_of(compiled),
        compile_seconds=seconds,
    )


def step_program(config: RunConfig) -> Program:
    """Both programs of an update, compiled for the devices there are, with weights and a batch that
    are made up; a timm teacher's weights too.

    What the optimizer leaves to the hosts (SOAP's eigenvectors) is not in it.
    """
    config = teacher_made_up(config)
    step = make_step(config)
    programs = step.programs
    began = time.perf_counter()
    gradients = programs.gradients.lower(*step.gradients).compile()
    apply = programs.apply.lower(*step.apply).compile()
    seconds = time.perf_counter() - began

    *_, constant_shapes, batch_shapes = step.gradients
    key = jax.random.key(config.seed)
    constants = jax.device_put(
        step.task.constants(), jax.tree.map(lambda x: x.sharding, step.constants)
    )
    batch = {
        name: jax.device_put(_made_up(name, x), x.sharding) for name, x in batch_shapes.items()
    }
    held_state = [programs.init(key)]

    def call() -> None:
        state = held_state[0]
        given = {**constants, **state.memory}
        grads, opt_state, _ = gradients(state.params, state.opt_state, state.step, given, batch)
        state, norm = apply(state.replace(opt_state=opt_state), grads)  # type: ignore[attr-defined]
        held_state[0] = jax.block_until_ready((state, norm))[0]

    # What the run holds beside each program's arguments counts too.
    beside = held(programs.state.ema), held(constant_shapes) + held(batch_shapes)
    needs = [
        own + more
        for own, more in zip(map(memory_of, (gradients, apply)), beside, strict=True)
        if own is not None
    ]
    trained = step.apply[1]
    return Program(
        what="train",
        sub_network=None,
        batch=config.batch_size,
        call=call,
        flops=step.task.train_flops(trained) * config.batch_size,
        # Read and written: parameters, mean, optimizer's state; read: the rest.
        least_bytes=2 * held(programs.state) + held(constant_shapes) + held(batch_shapes),
        memory=max(needs, default=None),
        compile_seconds=seconds,
        devices=programs.mesh.size,
    )


def _made_up(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Noise for images, zeros for the rest: what a step takes does not depend on it."""
    if name == "image":
        return jax.random.randint(jax.random.key(1), shape.shape, 0, 256).astype(shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)


def size_of(tree: Any) -> int:
    """Bytes of a tree's arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
    """Per call."""
    gflops_per_second: float
    of_ceiling: float
    """gflops_per_second over what all devices do in products of large matrices."""
    floor_ms: float
    """FLOPs over the ceiling, or bytes over the bandwidth, whichever is more."""
    ceiling_gflops_per_second: float
    """Measured, per device."""
    bandwidth_gb_per_second: float
    machine: str
    """With the date and JAX's version."""


def speed_of(program: Program, seconds: Sequence[float], dtype: str, ceiling: Ceiling) -> Speed:
    """A row of the table: a program's times on a machine with this ceiling."""
    median = statistics.median(seconds)
    low, high = median, median
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    t, w, l = program.sub_network or (None, None, None)
    n = program.devices
    return Speed(
        what=program.what,
        num_tokens=t,
        width=w,
        depth=l,
        batch=program.batch,
        dtype=dtype,
        device=jax.devices()[0].device_kind,
        devices=n,
        compile_s=program.compile_seconds,
        repeats=len(seconds),
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


def table(speeds: Sequence[Speed]) -> str:
    """The main numbers in columns, for reading."""
    head = "|tokens|width|depth|batch|compile s|median ms|quartiles|images/s|MiB|GFLOPs|GFLOP/s"
    rows = [f"{head}|of ceiling|floor ms".split("|")]
    for s in speeds:
        sizes = (str(x or "") for x in (s.num_tokens, s.width, s.depth, s.batch))
        rows.append(
            [
                *(s.what, *sizes, f"{s.compile_s:.1f}", f"{s.median_ms:.1f}"),
                f"{s.quarter_ms:.1f} to {s.three_quarters_ms:.1f}",
                f"{s.images_per_second:.1f}",
                "" if s.memory_mib is None else f"{s.memory_mib:.0f}",
                *(f"{s.gflops:.1f}", f"{s.gflops_per_second:.0f}", f"{s.of_ceiling:.0%}"),
                f"{s.floor_ms:.1f}",
            ]
        )
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(length) for cell, length in zip(row, lengths, strict=True)).rstrip()
        for row in rows
    )
