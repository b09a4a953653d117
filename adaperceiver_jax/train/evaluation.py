"""Validation: sums of each sub-network over all images, and metrics from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.train.reports import sub_network_name
from adaperceiver_jax.train.step import Programs, TrainState
from adaperceiver_jax.train.task import Batch, Metrics, Task


class Totals:
    """Sums of batches, on the host: whole numbers in 64 bits, the rest in double precision.

    The sums of a batch are the same on all processes, so the totals are.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._last: Metrics | None = None

    def add(self, sums: Metrics) -> None:
        """Adds those of the batch before; these are waited for only when the next come."""
        last, self._last = self._last, sums
        if last is None:
            return
        for name, value in jax.device_get(last).items():
            wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
            self._sums[name] = self._sums.get(name, np.zeros((), wide)) + value.astype(wide)

    def sums(self) -> dict[str, np.ndarray]:
        """The sums of all batches."""
        self.add({})
        self._last = None
        return self._sums


def evaluate(
    task: Task,
    programs: Programs,
    state: TrainState,
    constants: Any,
    batches: Iterable[Batch],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """'SUB_NETWORK/METRIC' of each sub-network over all batches, by EMA weights.

    stop: asked after each batch; where it says so there are no metrics, but None.
    """
    names = task.sub_networks()
    totals = [Totals() for _ in names]
    for batch in batches:
        for sub_network, total in zip(names, totals, strict=True):
            total.add(programs.evaluate(state, constants, batch, sub_network))
        if stop():
            return None
    return {
        f"{sub_network_name(sub_network)}/{metric}": value
        for sub_network, total in zip(names, totals, strict=True)
        for metric, value in task.summarise(total.sums()).items()
    }
