"""Time and memory that a sub-network takes on this machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from adaperceiver_jax.evaluate.outcomes import Grid
from adaperceiver_jax.evaluate.turns import take_turns
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.stepper import Stepper


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one call of a sub-network."""

    num_tokens: int
    width: int
    depth: int
    latency_ms: float
    """The median."""
    memory_mib: float | None
    """Device memory of the compiled program: all weights, images, intermediate arrays; the
    same for every depth. None where the compiler does not say."""
    batch: int
    """Images a call."""
    device: str


def measure(
    model: AdaPerceiver,
    params: Any,
    images: jax.Array,
    num_tokens: int,
    width: int,
    depths: tuple[int, ...],
    repeats: int,
) -> list[Cost]:
    """The cost of each depth on images (B, H, W, C), by one program for all: depth is traced."""
    program = compile_sub_network(model, params, images, num_tokens, width)
    memory = memory_of(program)
    device = jax.devices()[0].device_kind
    mib = None if memory is None else memory / 2**20

    def call(depth: jax.Array) -> None:
        jax.block_until_ready(program(params, images, depth))

    turns = take_turns({str(l): functools.partial(call, jnp.int32(l)) for l in depths}, repeats)
    return [
        Cost(num_tokens, width, l, 1e3 * turns.seconds(str(l)), mib, len(images), device)
        for l in depths
    ]


def compile_sub_network(
    model: AdaPerceiver, params: Any, images: jax.Array, num_tokens: int, width: int
) -> Any:
    """(params, images, depth) -> logits (B, classes), compiled, for every depth."""

    def run(params: Any, images: jax.Array, depth: jax.Array) -> jax.Array:
        return Stepper(model, params, num_tokens, width).logits(images, depth)

    return jax.jit(run).lower(params, images, jnp.int32(1)).compile()


def memory_of(compiled: Any) -> float | None:
    """Bytes that a compiled program needs of a device, with what it is given; None where the
    compiler does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    taken = [getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp")]
    return float(sum(taken) - memory.alias_size_in_bytes)


def pairs(grid: Grid) -> Iterator[tuple[int, int]]:
    """(num_tokens, width) of a grid: what is measured in one go."""
    return ((t, w) for t in grid.tokens for w in grid.widths)
