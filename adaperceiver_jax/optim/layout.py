"""How SOAP sees a parameter: which of its axes have factors, and into which blocks it is cut."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp

STACK = "blocks"
"""Below this name a leading axis counts parameters, which have nothing to do with each other."""

TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
"""The order of a kernel's axes, by their number."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter; made by `layout_of`."""

    shape: tuple[int, ...]
    """The parameter's own."""
    batch: int
    """1 if the first axis counts parameters, else 0."""
    order: tuple[int, ...]
    """The axes as PyTorch has them."""
    merged: tuple[int, ...]
    """Lengths of the axes that have factors, without the batch."""
    sections: tuple[tuple[slice, ...], ...]
    """For each of these axes the slices it is cut into."""

    @property
    def count(self) -> int:
        """Parameters in one: the length of the batch, or 1."""
        return self.shape[0] if self.batch else 1

    @property
    def blocks(self) -> list[tuple[slice, ...]]:
        """Every block, as a slice for each axis."""
        return list(itertools.product(*self.sections))

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """The lengths (m_1, ..., m_k) of every block."""
        return [tuple(part.stop - part.start for part in block) for block in self.blocks]

    def cut(self, x: jax.Array) -> list[jax.Array]:
        """An array of the parameter's shape -> its blocks, (count, m_1, ..., m_k) each."""
        x = x.transpose(self.order).reshape(self.count, *self.merged)
        return [x[(slice(None), *block)] for block in self.blocks]

    def join(self, blocks: list[jax.Array]) -> jax.Array:
        """The reverse of `cut`."""
        for axis in reversed(range(len(self.merged))):
            count = len(self.sections[axis])
            blocks = [
                jnp.concatenate(blocks[i : i + count], 1 + axis) if count > 1 else block
                for i, block in enumerate(blocks)
                if i % count == 0
            ]
        x = blocks[0].reshape([self.shape[axis] for axis in self.order])
        return x.transpose([self.order.index(axis) for axis in range(len(self.order))])


def layout_of(path: tuple, shape: tuple[int, ...], max_dim: int) -> Layout:
    """The layout of the parameter at a JAX key path.

    Axes of length 1 are dropped; then neighbours are merged, from the last axis backwards, while
    their product is at most `max_dim`; then longer axes are cut into blocks of `max_dim`.
    Kernels, which are (in, out) or (H, W, in, out) here, are first transposed to PyTorch's
    (out, in) or (out, in, H, W), for which this was defined. The order counts even within merged
    axes: squares gathered before the first refresh stay where they are when the basis turns.
    """
    keys = [getattr(entry, "key", None) for entry in path]
    batch = 1 if STACK in keys else 0
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(shape) < batch:
        raise ValueError(f"{name}: shape {shape} below {STACK!r} must have an axis of blocks")
    if not all(shape):
        raise ValueError(f"{name}: shape {shape} is empty; leave it out of what is trained")
    own = list(range(batch, len(shape)))
    if keys and keys[-1] == "kernel" and len(own) in TO_TORCH:
        own = [own[axis] for axis in TO_TORCH[len(own)]]
    merged: list[int] = []
    for size in (shape[axis] for axis in reversed(own) if shape[axis] > 1):
        if merged and merged[0] * size <= max_dim:
            merged[0] *= size
        else:
            merged.insert(0, size)
    merged = merged or [1]
    assert math.prod(merged) == math.prod(shape[batch:])
    sections = tuple(
        tuple(slice(start, min(start + max_dim, size)) for start in range(0, size, max_dim))
        for size in merged
    )
    return Layout(shape, batch, (*range(batch), *own), tuple(merged), sections)
