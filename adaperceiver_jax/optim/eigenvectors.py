"""Eigenvectors of SOAP's factors: inside a compiled program, or by LAPACK on the hosts.

A TPU takes minutes to compile the eigendecomposition of a matrix of 832, and is slow at it, so a
trainer has the hosts do it between two compiled programs. The matrices of one size, over all
parameters, are stacked and dealt out to the devices; each host decomposes what its own devices
hold, and the result goes back to where the old eigenvectors were.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from threadpoolctl import threadpool_limits

from adaperceiver_jax.optim.layout import pad_axis


def eigenvectors_in_graph(factors: Any, scale: jax.Array) -> Any:
    """Eigenvectors of factors / scale, in ascending order of eigenvalues.

    Args:
      factors: a tree of symmetric (..., m, m padded), zero beyond column m.
      scale: ().
    """

    def decompose(factor: jax.Array) -> jax.Array:
        m, width = factor.shape[-2:]
        vectors = jnp.linalg.eigh(factor[..., :m] / scale)[1]
        return pad_axis(vectors, factor.ndim - 1, width)

    return jax.tree.map(decompose, factors)


def eigenvectors_on_hosts(factors: Any, scale: jax.Array, old: Any) -> Any:
    """As `eigenvectors_in_graph`, outside of any compiled program, each host doing its share.

    All processes must call it. FloatingPointError names the parameter whose factor has no finite
    eigenvectors.

    Args:
      factors: a tree of tuples of symmetric (*batch, m, m padded), zero beyond column m.
      scale: ().
      old: the same tree of eigenvectors; the new ones are sharded as they are.
    """
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(factors)
    names = [
        jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in paths_and_leaves
    ]
    leaves = [leaf for _, leaf in paths_and_leaves]
    new = jax.tree.leaves(old)
    for size in sorted({leaf.shape[-2] for leaf in leaves}):
        members = [i for i, leaf in enumerate(leaves) if leaf.shape[-2] == size]
        group = [leaves[i] for i in members]
        owners = [names[i] for i in members for _ in range(_count(leaves[i].shape))]
        routes = _routes(group[0])
        stack = _stack(routes)(group, scale)
        vectors = _decompose(stack, owners)
        del stack
        shardings = tuple(new[i].sharding for i in members)
        shapes = tuple(leaf.shape for leaf in group)
        for i, array in zip(members, _unstack(routes, shapes, shardings)(vectors), strict=True):
            new[i] = array
    return jax.tree.unflatten(treedef, new)


def _count(shape: tuple[int, ...]) -> int:
    """Matrices in an array (*batch, m, m padded)."""
    return int(np.prod(shape[:-2], dtype=int))


@dataclasses.dataclass(frozen=True)
class _Routes:
    """How a stack of matrices (K, m, n) goes from where factors live to one owner each, and back.

    The stops between lie such that every step is a slice, an all-to-all or an all-gather of one
    shard; left to find its own way, XLA moves whole stacks to every device.
    """

    home: NamedSharding
    """The matrices split as the factors are, K whole."""
    halfway: NamedSharding
    """K split too, over the axes of the mesh that do not split the matrices."""
    owned: NamedSharding
    """K split over all devices, the matrices whole."""


def _routes(array: jax.Array) -> _Routes:
    """The routes for factors that are sharded as one of them, (*batch, m, m padded)."""
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        mesh = sharding.mesh
        spec = (*sharding.spec, *(None,) * (array.ndim - len(sharding.spec)))[-2:]
    elif len(sharding.device_set) == 1:
        mesh = Mesh(np.array(list(sharding.device_set)), ("one",), axis_types=(AxisType.Auto,))
        spec = (None, None)
    else:
        raise ValueError(
            f"a factor has sharding {sharding}: must be a NamedSharding, or one device"
        )
    used = [
        name for names in spec for name in ((names,) if isinstance(names, str) else names or ())
    ]
    rest = [name for name in mesh.axis_names if name not in used]
    return _Routes(
        home=NamedSharding(mesh, P(None, *spec)),
        halfway=NamedSharding(mesh, P(tuple(rest), *spec)),
        owned=NamedSharding(mesh, P((*rest, *used))),
    )


@functools.lru_cache
def _stack(routes: _Routes) -> Callable[[Sequence[jax.Array], jax.Array], jax.Array]:
    """A program: (factors (*batch, m, m padded), scale) -> (K, m, m), each with one owner."""

    @functools.partial(jax.jit, out_shardings=routes.owned)
    def stack(factors: Sequence[jax.Array], scale: jax.Array) -> jax.Array:
        m, width = factors[0].shape[-2:]
        stacked = jnp.concatenate([factor.reshape(-1, m, width) for factor in factors])
        devices = routes.owned.mesh.size
        stacked = pad_axis(stacked, 0, -(-len(stacked) // devices) * devices)
        for stop in (routes.home, routes.halfway, routes.owned):
            stacked = jax.lax.with_sharding_constraint(stacked, stop)
        return stacked[:, :, :m] / scale

    return stack


@functools.lru_cache
def _unstack(
    routes: _Routes, shapes: tuple[tuple[int, ...], ...], shardings: tuple
) -> Callable[[jax.Array], Sequence[jax.Array]]:
    """A program: (K, m, m) -> arrays (*batch, m, m padded) of these shapes and shardings."""

    @functools.partial(jax.jit, out_shardings=shardings)
    def unstack(stacked: jax.Array) -> tuple[jax.Array, ...]:
        stacked = pad_axis(stacked, 2, shapes[0][-1])
        for stop in (routes.owned, routes.halfway, routes.home):
            stacked = jax.lax.with_sharding_constraint(stacked, stop)
        ends = np.cumsum([_count(shape) for shape in shapes])
        return tuple(
            stacked[end - _count(shape) : end].reshape(shape)
            for end, shape in zip(ends, shapes, strict=True)
        )

    return unstack


def _decompose(stack: jax.Array, owners: list[str]) -> jax.Array:
    """(K, m, m) -> its eigenvectors, sharded alike; matrices without an owner become zeros."""
    shards = stack.addressable_shards
    starts = [shard.index[0].start or 0 for shard in shards]
    results = [np.zeros(shard.data.shape, np.float32) for shard in shards]
    sources = [
        np.asarray(shard.data) if start < len(owners) else None
        for shard, start in zip(shards, starts, strict=True)
    ]

    def one(job: tuple[int, int]) -> None:
        shard, row = job
        source, owner = sources[shard], owners[starts[shard] + row]
        assert source is not None
        try:
            vectors = np.linalg.eigh(source[row])[1]
        except np.linalg.LinAlgError:
            vectors = np.full_like(source[row], np.nan)
        if not np.isfinite(vectors).all():
            raise FloatingPointError(
                f"{owner}: a factor of its gradients has no finite eigenvectors; look for the "
                "step whose gradients were not finite, and resume from before it"
            )
        results[shard][row] = vectors

    jobs = [
        (shard, row)
        for shard, result in enumerate(results)
        for row in range(len(result))
        if starts[shard] + row < len(owners)
    ]
    # One matrix a core: LAPACK's own threads would fight over the cores, at many times the cost.
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(min(os.cpu_count() or 1, len(jobs)) or 1) as pool,
    ):
        list(pool.map(one, jobs))
    return jax.make_array_from_single_device_arrays(
        stack.shape,
        stack.sharding,
        [
            jax.device_put(result, shard.device)
            for result, shard in zip(results, shards, strict=True)
        ],
    )
