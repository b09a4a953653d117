"""What this machine does at most, as it is measured: the floor under every time."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adaperceiver_jax.data.loading import cores

TRIES = 9
_FULL = re.compile("RESOURCE_EXHAUSTED|out of memory|allocate memory", re.IGNORECASE)
"""In what JAX and PyTorch say of a device whose memory is full."""


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Of one device, the best of some tries."""

    flops: float
    """A second, in products of square matrices."""
    bandwidth: float
    """Bytes a second, read and written."""

    def or_better(self, other: Ceiling) -> Ceiling:
        """The more of two measurements: what else runs on a machine makes it slower for minutes."""
        return Ceiling(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def floor(self, flops: float, read_or_written: float) -> float:
        """The least seconds for so many operations and so many bytes of memory."""
        return max(flops / self.flops, read_or_written / self.bandwidth)


def described() -> str:
    """What stands above a table of times: '2026-11-23, 2 cores of AMD EPYC, JAX 0.10.2', and
    whether the C library keeps memory (docs/performance.md)."""
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


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Decorates a command line that takes --batch: where JAX or PyTorch says that a device's memory
    is full, it ends with a line that says what to do. A CPU's system may end it before they do."""
    try:
        yield
    except RuntimeError as error:  # both libraries' errors are
        if not _FULL.search(str(error)):
            raise
        why = str(error).strip().splitlines()[0]
        sys.exit(f"The device's memory is full: give a smaller --batch, or another device ({why})")


class Ceilings:
    """What the device does at most, measured between other things: the best so far. Products are of
    this dtype, or of float32 where those are quicker, as bfloat16's on CPUs can be slower."""

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
    # What is passed over takes its own place in memory: a fresh one would first be made ready.
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.float32)]

    def pass_over() -> None:
        held[0] = jax.block_until_ready(step(held[0]))

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
