"""Being asked to stop: SIGTERM and Ctrl-C let the step finish, so that it can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """A context in which the first SIGTERM or SIGINT is a request, and a second one is itself.

    On many processes SIGTERM is left to jax.distributed, which tells all of them.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; on many processes they all hear it at the same one."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
