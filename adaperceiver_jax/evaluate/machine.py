"""What this machine does at most, as it is measured: the floor under every time."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

TRIES = 9


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Of one device, the best of some tries."""

    flops: float
    """A second, in products of square matrices of one dtype."""
    bandwidth: float
    """Bytes a second, read and written."""

    def or_better(self, other: Ceiling) -> Ceiling:
        """The more of two measurements: what else runs on a machine makes it slower for minutes."""
        return Ceiling(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def floor(self, flops: float, read_or_written: float) -> float:
        """The least seconds for so many operations and so many bytes of memory."""
        return max(flops / self.flops, read_or_written / self.bandwidth)


def described() -> str:
    """What stands above a table of times: '2 cores of cpu, huge pages; JAX 0.10.2'."""
    cores = huge = ""
    if jax.default_backend() == "cpu":
        cores = f"{len(os.sched_getaffinity(0))} cores of "
        huge = ", huge pages" if "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "") else ""
    return f"{cores}{jax.devices()[0].device_kind}{huge}; JAX {jax.__version__}"


class Ceilings:
    """What the device does at most, measured between other things: the best so far."""

    def __init__(self, dtype: DTypeLike):
        self.dtype = dtype
        self.best = measure_ceiling(dtype)

    def measure(self) -> Ceiling:
        """Measures once more; the best so far."""
        self.best = self.best.or_better(measure_ceiling(self.dtype))
        return self.best


def measure_ceiling(
    dtype: DTypeLike,
    sides: tuple[int, ...] | None = None,
    megabytes: int | None = None,
    tries: int = TRIES,
) -> Ceiling:
    """Multiplies matrices of these sides, and passes over an array of so many MB; None is what the
    device needs to show all it can."""
    small = jax.default_backend() == "cpu"
    sides = sides or ((1024, 2048) if small else (4096, 8192, 16384))
    size = (megabytes or (1024 if small else 4096)) * 2**20
    product = jax.jit(jnp.matmul)
    best = 0.0
    for side in sides:
        keys = jax.random.split(jax.random.key(0))
        factors = [jax.random.normal(key, (side, side), dtype) for key in keys]
        seconds = _least(lambda factors=factors: product(*factors), tries)
        best = max(best, 2 * side**3 / seconds)
    # What is passed over takes its own place in memory: a fresh one would first be made ready.
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.float32)]

    def pass_over() -> Any:
        held[0] = step(held[0])
        return held[0]

    return Ceiling(best, 2 * size / _least(pass_over, tries))


def _least(call: Any, tries: int) -> float:
    """Seconds of the quickest of some calls, after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)
