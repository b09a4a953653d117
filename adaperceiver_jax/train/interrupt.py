"""Being asked to stop: SIGTERM and Ctrl-C let the step finish, so that it can be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """A context in which the first SIGTERM or SIGINT is a request, and a second one is itself.

    On many processes SIGTERM is left to jax.distributed, which tells all of them, also where only
    one got it; there a second one is nothing more, as others' may come late.
    """

    def __init__(self) -> None:
        self._asked = False
        self._times = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        several = jax.process_count() > 1
        if main:
            for number in (signal.SIGINT,) if several else _SIGNALS:
                handler = self._pass_on if several else self._ask
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def asked(self) -> bool:
        """Whether to stop; many processes, which must all ask as often, hear it the same time."""
        if jax.process_count() > 1:
            self._times += 1
            self._asked |= multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked
