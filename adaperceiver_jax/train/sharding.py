"""Where arrays live: a ('data', 'fsdp') mesh, the batch over both, large arrays over fsdp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.train.settings import MeshSettings

BATCH = P(("data", "fsdp"))
STACK = "blocks"
"""Below this name a leading axis counts blocks; it is never split."""
LARGE = 2**20
"""Bytes from which an array that cannot be split is an error."""


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, or those given; ValueError if they cannot be laid out so."""
    count = jax.device_count() if devices is None else len(devices)
    shape = [settings.data, settings.fsdp]
    known = math.prod(size for size in shape if size > 0)
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape) or count % known:
        raise ValueError(_misfit(settings, count))
    shape = [count // known if size == -1 else size for size in shape]
    if math.prod(shape) != count:
        raise ValueError(_misfit(settings, count))
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def _misfit(settings: MeshSettings, count: int) -> str:
    return (
        f"config.mesh data={settings.data}, fsdp={settings.fsdp}: must multiply to the {count} "
        "devices there are; -1, for one of the two, takes what the other leaves"
    )


def check_batch(batch_size: int, parts: int, mesh: Mesh, name: str) -> None:
    """Raises ValueError unless a batch splits evenly over the devices, in each of its parts."""
    unit = mesh.size * parts
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        near = f"{below} or {above}" if below else f"{above}"
        what = f"{mesh.size} devices" + (f" x {parts} parts (accumulate)" if parts > 1 else "")
        raise ValueError(f"{name}={batch_size}: cannot be split over {what}; use {near}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays with a leading batch axis."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Of what every device holds whole."""
    return NamedSharding(mesh, P())


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array (or shape) of a tree, by its path and shape.

    The longest axis that fsdp divides is split, of equals the last; the axis that counts blocks
    never is. Raises ValueError for an array of LARGE bytes or more that nothing divides.
    """

    def choose(path: tuple, leaf: Any) -> NamedSharding:
        size = mesh.shape["fsdp"]
        stacked = any(getattr(entry, "key", None) == STACK for entry in path)
        axes = [
            (length, axis)
            for axis, length in enumerate(leaf.shape)
            if length % size == 0 and length >= size and not (stacked and axis == 0)
        ]
        if size == 1 or not axes:
            amount = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if size > 1 and amount >= LARGE:
                raise ValueError(
                    f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape}: no "
                    f"axis is a multiple of config.mesh.fsdp={size}, so each device would hold all "
                    f"{amount / 2**20:.1f} MiB; choose another fsdp"
                )
            return replicated(mesh)
        split = max(axes)[1]
        return NamedSharding(mesh, P(*(None,) * split, "fsdp"))

    return jax.tree_util.tree_map_with_path(choose, tree)


def describe(tree: Any) -> str:
    """A line an array: path, shape, how it is split, bytes a device."""
    lines = []
    total = held = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        mine = leaf.sharding.shard_shape(leaf.shape)
        size = np.dtype(leaf.dtype).itemsize
        each = math.prod(mine) * size
        total, held = total + math.prod(leaf.shape) * size, held + each
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = getattr(leaf.sharding, "spec", "")
        lines.append(f"{name:60s} {leaf.shape!s:20s} {spec!s:36s} {each:12,d} bytes a device")
    summary = f"{total / 2**20:,.1f} MiB in {len(lines)} arrays, {held / 2**20:,.1f} MiB a device"
    return "\n".join([*lines, summary])
