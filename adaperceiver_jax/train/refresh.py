"""What the hosts do between the two programs of a step: SOAP's eigenvectors."""

from __future__ import annotations

import time
from typing import Any

from adaperceiver_jax.optim.eigenvectors import Factors, Refresh
from adaperceiver_jax.optim.optimizer import Optimizer


class Refresher:
    """New eigenvectors where a step is due; all processes must ask for the same, in one order.

    Exactly, that step waits for them. Overlapped, they are used from the next due step on, so that
    the hosts have all the steps between to find them; only the first are waited for.
    """

    def __init__(self, optimizer: Optimizer, overlap: bool = False) -> None:
        self._optimizer, self.overlap = optimizer, overlap
        self._begun: Refresh | None = None
        self._found: Factors | None = None
        self.waited = 0.0
        """Seconds, in all, in which steps waited for the hosts."""

    def __call__(self, opt_state: Any, params: Any, number: int) -> Any:
        """The optimizer's state that step `number`, which is due, goes on with.

        params: those that are trained, or their shapes.
        """
        began = time.perf_counter()
        if not self.overlap or number <= self._optimizer.first:
            found = self._optimizer.refresh(opt_state, params).result()
        else:
            found = self.upcoming(opt_state)
            self._begun, self._found = self._optimizer.refresh(opt_state, params), None
        self.waited += time.perf_counter() - began
        return self._optimizer.install(opt_state, found)

    def upcoming(self, opt_state: Any) -> Factors:
        """The eigenvectors that the next due step begins to use, overlapped; waits for them."""
        if self._begun is not None:
            self._found, self._begun = self._begun.result(), None
        return self._optimizer.installed(opt_state) if self._found is None else self._found

    def resume(self, upcoming: Factors) -> None:
        """Goes on with what `upcoming` gave when the run was saved."""
        self._begun, self._found = None, upcoming
