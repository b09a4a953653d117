"""What the hosts do between the two programs of a step: SOAP's eigenvectors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from adaperceiver_jax.optim.eigenvectors import Factors, Refresh
from adaperceiver_jax.optim.optimizer import Optimizer


class Refresher:
    """New eigenvectors where a step is due; all processes must ask for the same, in one order.

    Exactly, that step waits for them. Overlapped, they are used from the next due step on, so that
    the hosts have all the steps between to find them; only the first are waited for.
    """

    def __init__(self, optimizer: Optimizer, params: Any, overlap: bool = False) -> None:
        """params: those that are trained, or their shapes."""
        self._optimizer, self._params, self.overlap = optimizer, params, overlap
        self._begun: Refresh | None = None
        self._found: Factors | None = None
        """What comes after those in use, once it is there."""
        self.waited = 0.0
        """Seconds, in all, in which a run waited for the hosts."""

    def __call__(self, opt_state: Any, number: int) -> Any:
        """The optimizer's state that step `number`, which is due, goes on with."""
        with self._counted():
            if not self.overlap or number <= self._optimizer.first:
                found = self._begin(opt_state).result()
            else:
                found = self._upcoming() or self._optimizer.installed(opt_state)
                self._begun, self._found = self._begin(opt_state), None
        return self._optimizer.install(opt_state, found)

    def to_save(self, step: int) -> Factors:
        """What `resume` needs of a run that is saved after `step`, beside its state: the
        eigenvectors that the next due step begins to use, if the state does not tell them.

        Right after a due step its factors do: they are those that are being decomposed, and nobody
        waits.
        """
        if not self.overlap or self._optimizer.due(step):
            return {}
        with self._counted():
            return self._upcoming() or {}

    def resume(self, opt_state: Any, step: int, upcoming: Factors) -> None:
        """Goes on where a run was saved after `step`, with what `to_save` gave."""
        self._begun, self._found = None, upcoming or None
        if self.overlap and not upcoming and self._optimizer.due(step):
            self._begun = self._begin(opt_state)

    def _begin(self, opt_state: Any) -> Refresh:
        return self._optimizer.refresh(opt_state, self._params)

    def _upcoming(self) -> Factors | None:
        """Waits for what was begun; None: nothing was."""
        if self._begun is not None:
            self._found, self._begun = self._begun.result(), None
        return self._found

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began
