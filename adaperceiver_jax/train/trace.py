"""A profiler's trace of some steps of a run."""

from __future__ import annotations

from pathlib import Path

import jax

from adaperceiver_jax.train.settings import ProfileSettings


class Trace:
    """Written to the run's folder, for TensorBoard's profile page."""

    def __init__(self, settings: ProfileSettings, workdir: Path) -> None:
        self._settings, self._folder = settings, workdir / "profile"
        self._open = False

    def step(self, number: int) -> None:
        """The call's step `number`, from 1, begins."""
        start, steps = self._settings.start, self._settings.steps
        if steps and number == start:
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        elif number == start + steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one under way."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
