"""SOAP's view of parameters: each is cut into blocks, and all blocks of one size form a stack that
is dealt out to the devices.

What SOAP does to a block has nothing to do with any other block. So all blocks of one size form a
stack along a leading axis, that axis is split over all devices, and each device works on its own
blocks, whole, with their factors and moments beside them: nothing is computed twice, and a product
never waits for another device. A stack of few but large blocks is split within the blocks instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BLOCKS = "blocks"
"""Below this name a leading axis counts parameters, which have nothing to do with each other."""

TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
"""The order of a kernel's axes, by their number."""
ALL = ("data", "fsdp")
"""The mesh's axes, in the order in which stacks are dealt out over them."""
FEW, LARGE = 4, 1024
"""A stack of at most FEW blocks with an axis of at least LARGE is split within its blocks."""
HEAVY = 2**20
"""Numbers from which the factors of an axis, of all of such a stack's blocks, are split, too."""
UNIT = 256
"""Axes of such a stack that are LARGE, or whose factors are HEAVY, are rounded up to a multiple of
this, by zeros, so that meshes divide them."""
STACK_ROWS = re.compile(r"(?:^|/)(\d+)_of_\d+(?:x\d+)*(?:/\d+)?$")
"""Finds the number of rows that are blocks in the path of a stack's array; the others are zeros."""


def first_axis(shape: tuple[int, ...], mesh: Mesh) -> P:
    """The first axis that all devices divide, split over them; P() if there is none."""
    for axis, length in enumerate(shape):
        if length and length % mesh.size == 0:
            return P(*(None,) * axis, ALL)
    return P()


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
    batch = 1 if BLOCKS in keys else 0
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(shape) < batch:
        raise ValueError(f"{name}: shape {shape} below {BLOCKS!r} must have an axis of blocks")
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


@dataclasses.dataclass(frozen=True)
class Stack:
    """One stack: how large it is, and where its blocks come from."""

    size: tuple[int, ...]
    """Lengths of a block's axes."""
    members: tuple[tuple[int, int], ...]
    """(parameter, block of it) in the order they are stacked; a parameter below 'blocks' has as
    many as it counts."""
    rows: int
    """Blocks."""
    slots: int
    """Rows rounded up, by zeros, such that the devices divide them."""
    held: tuple[int, ...]
    """Lengths as they are held: those of `size`, or more."""

    @property
    def name(self) -> str:
        return f"{self.rows}_of_{'x'.join(map(str, self.size))}"

    @property
    def within(self) -> bool:
        """True if it is split within its blocks."""
        return self.rows <= FEW and max(self.size) >= LARGE


class Stacks:
    """The stacks of a tree of parameters."""

    def __init__(self, params: Any, max_dim: int, mesh: Mesh | None = None) -> None:
        """max_dim: the longest axis of a block. mesh: what the stacks are dealt out over."""
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        self._tree: Any = tree
        self._layouts: list[Layout] = [
            layout_of(path, tuple(leaf.shape), max_dim) for path, leaf in leaves
        ]
        self._names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        members: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, layout in enumerate(self._layouts):
            for j, size in enumerate(layout.sizes):
                members.setdefault(size, []).append((i, j))
        self.all = [self._stack(size, tuple(found)) for size, found in sorted(members.items())]

    def _stack(self, size: tuple[int, ...], members: tuple[tuple[int, int], ...]) -> Stack:
        rows = sum(self._layouts[i].count for i, _ in members)
        stack = Stack(size, members, rows, rows, size)
        if stack.within:
            held = (_up(m, UNIT) if m >= LARGE or rows * m * m >= HEAVY else m for m in size)
            return dataclasses.replace(stack, held=tuple(held))
        return dataclasses.replace(stack, slots=_up(rows, self._mesh.size if self._mesh else 1))

    def owners(self, stack: Stack) -> list[str]:
        """The parameter of each row."""
        return [self._names[i] for i, _ in stack.members for _ in range(self._layouts[i].count)]

    def deal(self, tree: Any) -> dict[str, jax.Array]:
        """A tree like the parameters -> the stacks (slots, *held) by name, each device its own."""
        cut = [
            layout.cut(leaf)
            for layout, leaf in zip(self._layouts, self._tree.flatten_up_to(tree), strict=True)
        ]
        return {
            stack.name: self._dealt([cut[i][j] for i, j in stack.members], stack)
            for stack in self.all
        }

    def collect(self, stacks: Mapping[str, jax.Array]) -> Any:
        """The reverse of `deal`: every device has the whole of what it had before."""
        blocks: list[list[Any]] = [[None] * len(layout.blocks) for layout in self._layouts]
        for stack in self.all:
            x, start = self._collected(stacks[stack.name], stack), 0
            for i, j in stack.members:
                end = start + self._layouts[i].count
                blocks[i][j] = x[start:end]
                start = end
        leaves = [layout.join(own) for layout, own in zip(self._layouts, blocks, strict=True)]
        return jax.tree.unflatten(self._tree, leaves)

    def _dealt(self, blocks: list[jax.Array], stack: Stack) -> jax.Array:
        """Blocks (count, *size) of the stack's members -> (slots, *held)."""
        x = jnp.concatenate(blocks)
        start, *stops = reversed(self._way(stack))
        x = _pad(self._place(x, start), (stack.slots, *stack.held))
        for stop in stops:
            x = self._place(x, stop)
        return x

    def _collected(self, x: jax.Array, stack: Stack) -> jax.Array:
        """(slots, *held) -> (rows, *size)."""
        stops = self._way(stack)
        end = stops[-1]
        if not stack.within and len(stack.size) > 1:  # rows of zeros are dropped, then gathered
            stops[-1] = self._spread(stack)
        for stop in stops:
            x = self._place(x, stop)
        return self._place(x[(slice(stack.rows), *(slice(m) for m in stack.size))], end)

    def _way(self, stack: Stack) -> list[P]:
        """From where a stack is dealt out to where parameters are, with fsdp's share of an axis.

        Each step is an all-to-all or a gathering; the other way a slice or an all-to-all.
        """
        if self._mesh is None:
            return [P(), P()]
        parts = self._mesh.shape["fsdp"]
        axes = [1 + i for i, m in enumerate(stack.size) if m % parts == 0 and parts > 1]
        end = _spec(fsdp=axes[0]) if axes else P()
        if not stack.within:
            between = _spec(data=0, fsdp=axes[0] if axes else 1)
            return [P(ALL), between, end]
        dealt = first_axis((stack.slots, *stack.held), self._mesh)
        axis = len(dealt) - 1
        if axis < 0 or not axes or axis in axes:
            return [dealt, _spec(fsdp=axis) if axis in axes else P()]
        return [dealt, _spec(data=axis, fsdp=axes[0]), end]

    def _spread(self, stack: Stack) -> P:
        """Every device a part of all rows."""
        if self._mesh is None:
            return P()
        fsdp = len(self._way(stack)[1]) - 1
        return _spec(data=2 if fsdp <= 1 else 1, fsdp=max(1, fsdp))

    def _place(self, x: jax.Array, spec: P) -> jax.Array:
        if self._mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, spec))


def _spec(**axes: int) -> P:
    """The spec that splits an array's axis, by number, over the mesh's, by name."""
    names = {axis: name for name, axis in axes.items()}
    return P(*(names.get(axis) for axis in range(max(names) + 1)))


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _pad(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Zeros appended up to a shape."""
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, want - have) for have, want in zip(x.shape, shape, strict=True)])
