"""What a step compiled to: both its programs, and what the run holds beside them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from adaperceiver_jax.aot.chips import Layout, Topology
from adaperceiver_jax.aot.program import Program, Work

WHOLE = 2**22
"""Bytes from which an array counts as large that every chip holds whole, as the trainer counts."""


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


def replicated(arguments: Any) -> tuple[tuple[str, int], ...]:
    """Of shapes with shardings, the large ones that every chip holds whole; the largest first."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= WHOLE and leaf.sharding.is_fully_replicated:
            found.append((jax.tree_util.keystr(path, simple=True, separator="/"), size))
    return tuple(sorted(found, key=lambda item: -item[1]))
