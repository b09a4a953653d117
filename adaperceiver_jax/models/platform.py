"""The few places where CPUs are given other operations for the same numbers."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

_without = contextvars.ContextVar("without", default=False)
_alone = contextvars.ContextVar("alone", default=False)


def by_platform(
    *arguments: jax.Array,
    cpu: Callable[..., jax.Array],
    default: Callable[..., jax.Array],
) -> jax.Array:
    """cpu(*arguments) where the program is compiled for a CPU, default(*arguments) elsewhere."""
    if _without.get():
        return default(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


@contextlib.contextmanager
def without_platforms() -> Iterator[None]:
    """What is traced inside chooses nothing by platform: some converters cannot."""
    token = _without.set(True)
    try:
        yield
    finally:
        _without.reset(token)


@contextlib.contextmanager
def traced_for(mesh: Mesh) -> Iterator[None]:
    """What is traced inside runs on this mesh.

    A function that is jitted keeps what it was first traced for: give each mesh one of its own.
    """
    token = _alone.set(mesh.size == 1 and mesh.devices.flat[0].platform == "cpu")
    try:
        yield
    finally:
        _alone.reset(token)


def on_one_cpu() -> bool:
    """Whether what is traced is known to run on one CPU, where no axis is split."""
    return _alone.get()
