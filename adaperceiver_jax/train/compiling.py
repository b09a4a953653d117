"""Compiling: what it took, and programs kept on a disk from one start of a run to the next."""

from __future__ import annotations

import threading
from pathlib import Path

import jax

from adaperceiver_jax.train.metrics import say

_COMPILED = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"
_LONG = 1.0
"""Seconds from which a program has a line of its own; also from which JAX keeps it."""


def keep_programs(folder: str, workdir: Path) -> None:
    """Has JAX keep what it compiles from now on, unless the user said where already.

    `folder` is relative to the run's, '' keeps nothing. JAX names programs by all that decides
    them, so that a folder never gives a stale one; of several processes the first one writes.
    """
    if folder and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / folder))


class Compiling:
    """A context that says which programs were compiled, in what time, and which were kept ones."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._count, self._kept, self._seconds = 0, 0, 0.0

    def __enter__(self) -> Compiling:
        jax.monitoring.register_event_listener(self._hear)
        jax.monitoring.register_event_duration_secs_listener(self._hear_time)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_listener(self._hear)
        jax.monitoring.unregister_event_duration_listener(self._hear_time)
        if self._count:
            say(
                f"compiled {self._count - self._kept} programs and read {self._kept} kept ones "
                f"in {self._seconds:.1f} s"
            )

    def _hear(self, event: str, **_: str | int) -> None:
        if event == _HIT:  # comes before the time, in the same thread
            self._local.hit = True

    def _hear_time(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event != _COMPILED:
            return
        hit, self._local.hit = getattr(self._local, "hit", False), False
        with self._lock:
            self._count += 1
            self._kept += hit
            self._seconds += duration_secs
        if duration_secs >= _LONG:
            name = str(about.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")")
            say(f"{'read the kept' if hit else 'compiled'} {name} in {duration_secs:.1f} s")
