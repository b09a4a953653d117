"""The few places where CPUs are given other operations for the same numbers."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_without = contextvars.ContextVar("without", default=False)


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
