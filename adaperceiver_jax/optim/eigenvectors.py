"""Eigenvectors of SOAP's factors: inside a compiled program, or by LAPACK on the hosts.

A TPU takes minutes to compile the eigendecomposition of a matrix of 832, and is slow at it, so a
trainer has the hosts do it between two compiled programs. Factors lie in stacks that are dealt out
to the devices: each host decomposes what its own devices hold, and puts the result in its place.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from threadpoolctl import threadpool_limits

from adaperceiver_jax.optim.stacks import ALL, Stack

LARGE = 3072
"""From this size on a matrix gets all of a host's cores."""
Factors = Mapping[str, tuple[jax.Array, ...]]
"""By the name of a stack, one array (slots, m, m) an axis of its blocks; zero beyond the stack's
rows, and beyond the length of the blocks' axis."""


def eigenvectors_in_graph(factors: Factors, scale: jax.Array, stacks: list[Stack]) -> Factors:
    """Eigenvectors of factors / scale, (slots, m, m), in ascending order of eigenvalues.

    One stack after the other: LAPACK under XLA on a CPU locks up where it is called for several at
    once. Each takes a 0 that is made of the one before, since a CPU's program keeps no
    `optimization_barrier`. Decompositions elsewhere in a program, of a second `soap` say, are not
    waited for.
    """
    before = jnp.zeros(())

    def decompose(factor: jax.Array, rows: int, m: int) -> jax.Array:
        nonlocal before
        vectors = jnp.linalg.eigh(factor[:rows, :m, :m] / scale + before)[1]
        before = 0 * jnp.nan_to_num(vectors[0, 0, 0])
        return jnp.zeros_like(factor).at[:rows, :m, :m].set(vectors)

    return {
        stack.name: tuple(
            decompose(factor, stack.rows, m)
            for factor, m in zip(factors[stack.name], stack.size, strict=True)
        )
        for stack in stacks
    }


class Refresh:
    """Eigenvectors that the hosts are working on; all processes begin and finish one together."""

    def __init__(
        self,
        factors: Factors,
        scale: float | jax.Array,
        stacks: list[Stack],
        owners: Callable[[Stack], list[str]],
    ) -> None:
        """Copies this host's share of factors / scale to it, and begins.

        owners: the parameters that a stack's rows are of, for errors.
        """
        divisor = np.float32(jax.device_get(scale))
        self._shares: dict[str, list[_Share]] = {}
        shards: list[tuple[jax.Array, int, range, int, np.ndarray, list[str]]] = []
        split = sum(not _lie_whole(f.shape, f.sharding) for s in stacks for f in factors[s.name])
        nth = itertools.count()
        for stack in stacks:
            names = owners(stack)
            self._shares[stack.name] = []
            for factor, m in zip(factors[stack.name], stack.size, strict=True):
                first, back = 0, None
                if not _lie_whole(factor.shape, factor.sharding):
                    first = next(nth) * len(factor.sharding.device_set) // split
                    deal, back = _programs(factor.sharding, factor.shape, first)
                    factor = deal(factor)
                share = _Share(factor.shape, factor.sharding, back)
                self._shares[stack.name].append(share)
                for shard in factor.addressable_shards:
                    start = (shard.index[0].start or 0) - first
                    result = np.zeros(shard.data.shape, np.float32)
                    share.results.append((shard.device, result))
                    rows = range(max(0, start), min(start + len(result), stack.rows))
                    if rows:
                        shard.data.copy_to_host_async()
                        shards.append((shard.data, start, rows, m, result, names))
        jobs: list[_Job] = []
        for data, start, rows, m, result, names in shards:  # once all are on their way
            here = np.asarray(data)
            for row in rows:  # divided now: `here` may be a view of what is given away next
                matrix = here[row - start, :m, :m] / divisor
                jobs.append((matrix, result[row - start], names[row]))
        self._pool = ThreadPoolExecutor(1)
        self._work = self._pool.submit(_decompose_all, jobs)

    def result(self) -> Factors:
        """The eigenvectors, once they are there, sharded as the factors are.

        FloatingPointError names the parameter whose factor has none that are finite.
        """
        try:
            self._work.result()
        finally:
            self._pool.shutdown()
        return {
            name: tuple(share.array() for share in shares) for name, shares in self._shares.items()
        }


@dataclasses.dataclass
class _Share:
    """This host's eigenvectors of one array of factors, each matrix of which has one owner."""

    shape: tuple[int, ...]
    sharding: Any
    back: Callable[[jax.Array], jax.Array] | None
    """Program to the sharding of the factors, if that is another."""
    results: list[tuple[Any, np.ndarray]] = dataclasses.field(default_factory=list)
    """By device."""

    def array(self) -> jax.Array:
        """All eigenvectors, as an array like the factors."""
        results = [jax.device_put(result, device) for device, result in self.results]
        array = jax.make_array_from_single_device_arrays(self.shape, self.sharding, results)
        return array if self.back is None else self.back(array)


_Job = tuple[np.ndarray, np.ndarray, str]
"""A matrix, where its eigenvectors go, and whose it is."""


def _decompose_all(jobs: list[_Job]) -> None:
    """The large ones one after another, with all cores each; then one a core, since LAPACK's own
    threads would fight over the cores, at many times the cost."""
    cores = os.cpu_count() or 1
    large = [job for job in jobs if len(job[0]) >= LARGE]
    rest = sorted((job for job in jobs if len(job[0]) < LARGE), key=lambda job: -len(job[0]))
    with threadpool_limits(cores, "blas"):
        for job in large:
            _decompose(*job)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda job: _decompose(*job), rest))


def _decompose(factor: np.ndarray, place: np.ndarray, owner: str) -> None:
    """Writes the eigenvectors of an (m, m) factor into an array (at least m, at least m)."""
    m = len(factor)
    try:
        vectors = np.linalg.eigh(factor)[1]
    except np.linalg.LinAlgError:
        vectors = np.full_like(factor, np.nan)
    if not np.isfinite(vectors).all():
        raise FloatingPointError(
            f"{owner}: a factor of its gradients has no finite eigenvectors; look for the step "
            "whose gradients were not finite, and resume from before it"
        )
    place[:m, :m] = vectors


def _lie_whole(shape: tuple[int, ...], sharding: Any) -> bool:
    """True if each matrix lies on one device, and on no other."""
    if len(sharding.device_set) == 1:
        return True
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"a factor has sharding {sharding}: must be a NamedSharding, or one device"
        )
    shard = sharding.shard_shape(shape)
    return shard[0] * sharding.mesh.size == shape[0] and shard[1:] == shape[1:]


@functools.lru_cache
def _programs(sharding: NamedSharding, shape: tuple[int, ...], first: int) -> tuple[Any, Any]:
    """Programs for factors (slots, m, m) that are split otherwise: to one owner a matrix, the first
    at `first`, and back. Each step is a slice, an all-to-all or a gathering of slices that
    differ."""
    mesh = sharding.mesh
    after = -(shape[0] + first) % mesh.size
    owned, sliced = (NamedSharding(mesh, spec) for spec in (P(ALL), P(None, ALL)))
    place = jax.lax.with_sharding_constraint

    @functools.partial(jax.jit, out_shardings=owned)
    def deal(factor: jax.Array) -> jax.Array:
        x = jnp.pad(place(factor, sliced), ((first, after), (0, 0), (0, 0)))
        return place(x, owned)

    @functools.partial(jax.jit, out_shardings=sharding)
    def back(dealt: jax.Array) -> jax.Array:
        return place(place(dealt, owned), sliced)[first : first + shape[0]]

    return deal, back
