"""Where arrays live: a ('data', 'fsdp') mesh, the batch over both, the rest by rules on paths."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from clu.parameter_overview import get_parameter_overview
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.optim.stacks import BLOCKS, first_axis
from adaperceiver_jax.train.settings import WAYS, MeshSettings

BATCH = P(("data", "fsdp"))
LARGE = 2**22
"""Bytes from which an array that should be split and cannot be is an error."""

ALL, FSDP, WHOLE = WAYS
"""How an array lies: 'all': its first axis that the devices divide is split over all of them;
'fsdp': its longest axis that fsdp divides is split over fsdp, of equals the last, never that of the
blocks; 'whole': every device holds it."""
RULES = (
    (r"(opt_state/.*|upcoming)/\d+_of_[\dx]+(/\d+)?", ALL),  # SOAP's stacks
    (r"(params|ema|opt_state)/.*", FSDP),
    (r"constants/.*", WHOLE),  # a frozen teacher: gathering it each step takes longer than it saves
)
"""(pattern of a whole path, way); the first that matches counts, the run's own come before."""


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, or those given; ValueError if they cannot be laid out so."""
    count = jax.device_count() if devices is None else len(devices)
    asked = [settings.data, settings.fsdp]
    left = count // math.prod(size for size in asked if size > 0)
    shape = [left if size == -1 else size for size in asked]
    if math.prod(shape) != count or min(shape) < 1 or asked == [-1, -1]:
        raise ValueError(
            f"config.mesh data={settings.data}, fsdp={settings.fsdp}: must multiply to the {count} "
            "devices there are; -1, for one of the two, takes what the other leaves"
        )
    axes, types = ("data", "fsdp"), (AxisType.Auto,) * 2
    try:
        return jax.make_mesh(shape, axes, axis_types=types, devices=devices)
    except NotImplementedError as error:  # neighbours on the mesh must be so on the chips' torus
        raise ValueError(_torn(shape, jax.devices() if devices is None else devices)) from error


def _torn(shape: Sequence[int], devices: Sequence[Any]) -> str:
    """The message for a mesh with an axis across a part of one of the torus's."""
    sides = [max(places) + 1 for places in zip(*(d.coords for d in devices), strict=True)]
    fits = {1}
    for side in sides:
        fits |= {size * side for size in fits}
    laid_out = " x ".join(map(str, sides))
    return (
        f"config.mesh.fsdp={shape[1]}: the {len(devices)} chips are laid out {laid_out}, and a "
        "mesh's axis must be some of these sides, whole; use " + " or ".join(map(str, sorted(fits)))
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
    """The sharding of arrays with a leading batch axis."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def way_of(name: str, rules: Sequence[tuple[str, str]] = ()) -> str:
    """The way, one of WAYS, to split the array with this path."""
    return next((way for p, way in (*rules, *RULES) if re.fullmatch(p, name)), FSDP)


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, str]] = ()) -> Any:
    """A sharding for each array (or shape) of a tree, by its path and shape.

    Raises ValueError, naming all of them, for arrays of LARGE bytes or more that would be whole on
    every device though no rule says so.

    Args:
      rules: the run's own; they come before RULES.
    """

    misfits: dict[str, str] = {}

    def choose(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        way = way_of(name, rules)
        if way == WHOLE:
            return replicated(mesh)
        spec = first_axis(leaf.shape, mesh) if way == ALL else _longest(path, leaf.shape, mesh)
        parts = mesh.size if way == ALL else mesh.shape["fsdp"]
        amount = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        if spec == P() and parts > 1 and amount >= LARGE:
            of = f"the {parts} devices" if way == ALL else f"config.mesh.fsdp={parts}"
            misfits[name] = (
                f"{name} {leaf.shape}: no axis is a multiple of {of}, so each device would hold "
                f"all {amount / 2**20:.1f} MiB"
            )
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(choose, tree)
    if misfits:
        allowed = ", ".join(f"('{re.escape(name)}', 'whole')" for name in misfits)
        raise ValueError(
            "; ".join(misfits.values()) + "; choose another fsdp, or allow it with "
            f'--config.mesh.rules="({allowed},)"'
        )
    return shardings


def _longest(path: tuple, shape: tuple[int, ...], mesh: Mesh) -> P:
    size = mesh.shape["fsdp"]
    stacked = any(getattr(entry, "key", None) == BLOCKS for entry in path)
    axes = [
        (length, axis)
        for axis, length in enumerate(shape)
        if length % size == 0 and length >= size and not (stacked and axis == 0)
    ]
    return P(*(None,) * max(axes)[1], "fsdp") if size > 1 and axes else P()


def constant_shardings(constants: Any, mesh: Mesh, rules: Sequence[tuple[str, str]] = ()) -> Any:
    """Shardings of arrays that a loss needs and nobody trains; paths begin with 'constants/'."""
    return tree_shardings({"constants": constants}, mesh, rules)["constants"]


def placed(shapes: Any, shardings: Any) -> Any:
    """A tree of arrays or shapes as shapes with shardings: a tree of these, or one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def gather(params: Any, mesh: Mesh, dtype: Any = None) -> Any:
    """Parameters as every device needs them to compute with: whole, kernels in `dtype`.

    Without it XLA is free to split a product along its channels instead, and then moves
    activations, which are far larger.
    """

    def one(path: tuple, x: jax.Array) -> jax.Array:
        if dtype is not None and getattr(path[-1], "key", None) == "kernel":
            x = x.astype(dtype)
        return jax.lax.with_sharding_constraint(x, replicated(mesh))

    return jax.tree_util.tree_map_with_path(one, params)


def by_path(tree: Any) -> dict[str, Any]:
    """'a/b/0' -> array (or shape), for all of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(tree: Any) -> str:
    """A table of all arrays: path, shape, dtype, elements, how each is split; sums below."""
    table = get_parameter_overview(by_path(tree), include_stats="sharding")
    return f"{table}\nEach device holds {held(tree):,} bytes"


def held(shapes: Any) -> int:
    """Bytes per device of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
