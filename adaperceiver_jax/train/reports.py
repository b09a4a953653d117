"""Reports of a run: `metrics.csv`, TensorBoard events, lines on the screen, a trace."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import tensorboardX

from adaperceiver_jax.train.chips import peak_flops
from adaperceiver_jax.train.settings import ProfileSettings

CSV = "metrics.csv"
BAD_IMAGES = "bad_images"
"""The metric that counts images that did not decode."""
_COMPILED = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"
_LONG = 1.0
"""Seconds from which a program has a line of its own; also from which JAX keeps it."""


class MetricsFile:
    """`metrics.csv`: a row per logged step; the same whether the run was interrupted or not."""

    def __init__(self, workdir: Path, step: int) -> None:
        """Goes on after `step`: rows beyond it, of a run that was killed, are dropped."""
        self._path = workdir / CSV
        self._rows: list[dict[str, str]] = []
        if self._path.exists():
            text = self._path.read_bytes().decode()
            whole = text[: text.rfind("\n") + 1]  # the last line may not have been
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows = [row for row in reader if (row.get("step") or "").isdigit()]
            self._rows = [row for row in rows if int(row["step"]) <= step]
        self._columns = list(dict.fromkeys(key for row in self._rows for key in row))
        self._rewrite()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row; a name not seen before adds a column."""
        row = {"step": str(step), **{name: repr(float(v)) for name, v in values.items()}}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
            return
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _rewrite(self) -> None:
        if not self._columns:
            self._path.unlink(missing_ok=True)
            return
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)


class Writer:
    """Writes metrics where people look for them; on the first process only."""

    def __init__(self, workdir: Path, step: int) -> None:
        self._file = self._events = None
        if jax.process_index() == 0:
            self._file = MetricsFile(workdir, step)
            self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

    def write(
        self, step: int, values: Mapping[str, float], speed: Mapping[str, float] | None = None
    ) -> None:
        """`speed` differs from run to run, so it goes to TensorBoard alone."""
        if self._file is None or self._events is None:
            return
        self._file.write(step, values)
        for name, value in {**values, **(speed or {})}.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def show_evaluation(run: str, step: int, values: Mapping[str, float], seconds: float) -> None:
    """Prints a line of what was evaluated."""
    results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    say(f"{run} step {step}: {results}  ({clock(seconds)})")


class Progress:
    """A line now and then: step, loss and its parts, images per second, time left."""

    def __init__(
        self,
        first: int,
        last: int,
        batch_size: int,
        flops: float,
        label: str = "",
        waited: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """
        Args:
          first, last: the run makes the steps after `first` up to `last`.
          flops: per training image.
          waited: seconds so far in which steps waited for eigenvectors.
        """
        self._last, self._batch_size, self._flops = last, batch_size, flops
        self._label = f"{label} " if label else ""
        self._waited_now, self._waited = waited, waited()
        self._mark = (first, time.perf_counter())
        self._began: tuple[int, float] | None = None
        self._away = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is not that of steps: evaluation, checkpoints. Time in which it
        waits for eigenvectors is."""
        began = time.perf_counter() - self._waited_now()
        yield
        self._away += time.perf_counter() - self._waited_now() - began

    def speed(self, step: int) -> dict[str, float]:
        """Speed since the last call: images per second, per chip, MFU where the chip is known, and
        the share of the time in which steps waited for eigenvectors."""
        now, waited = time.perf_counter(), self._waited_now()
        before, then = self._mark
        seconds = max(now - then - self._away, 1e-9)
        if self._began is None:  # the first span holds the compilation
            self._began = (step, now)
        self._mark, self._away = (step, now), 0.0
        rate = (step - before) * self._batch_size / seconds
        chips = jax.device_count()
        values = {"images_per_second": rate, "images_per_second_per_chip": rate / chips}
        values["model_tflops_per_chip"] = rate / chips * self._flops / 1e12
        peak = peak_flops(jax.devices()[0])
        if peak:
            values["mfu"] = rate / chips * self._flops / peak
        if waited > self._waited:
            values["waited_for_eigenvectors"] = (waited - self._waited) / seconds
            self._waited = waited
        return values

    def show(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Prints the line of a step."""
        parts = " ".join(
            f"{name} {value:.4g}"
            for name, value in values.items()
            if name not in ("loss", "grad_norm", "update_norm", "lr", BAD_IMAGES)
            and "/" not in name
        )
        bad = f"  bad images {values[BAD_IMAGES]:.0f}" if values.get(BAD_IMAGES) else ""
        rate = f"{speed['images_per_second']:,.0f} images/s"
        if jax.device_count() > 1:
            rate += f", {speed['images_per_second_per_chip']:,.0f} a chip"
        rate += f", {1e3 * speed['model_tflops_per_chip']:,.0f} model GFLOP/s a chip"
        if "mfu" in speed:
            rate += f", MFU {speed['mfu']:.1%}"
        if "waited_for_eigenvectors" in speed:
            rate += f", eigenvectors waited for {speed['waited_for_eigenvectors']:.1%} of the time"
        say(
            f"{self._label}step {step}/{self._last} ({100 * step / self._last:.0f}%)  "
            f"loss {values['loss']:.4f} ({parts})  lr {values['lr']:.2g}{bad}  {rate}  "
            f"ETA {self._left(step)}"
        )

    def _left(self, step: int) -> str:
        """Time to the end at the pace so far, evaluation and checkpoints included."""
        if self._began is None or step <= self._began[0]:
            return "?"
        pace = (time.perf_counter() - self._began[1]) / (step - self._began[0])
        return clock(pace * (self._last - step))


def keep_programs(folder: str, workdir: Path) -> None:
    """Has JAX cache what it compiles from now on, unless the user named a cache already.

    `folder` is relative to the run's, '' caches nothing. JAX names programs by all that decides
    them, so a folder never gives a stale one; of several processes the first one writes.
    """
    if folder and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / folder))


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """A context that says which programs were compiled, in what time, and which were cached."""
    local, times = threading.local(), []

    def hear(event: str, **_: str | int) -> None:
        if event == _HIT:  # comes before the time, in the same thread
            local.hit = True

    def hear_time(event: str, duration_secs: float, **about: str | int) -> None:
        if event != _COMPILED:
            return
        hit, local.hit = getattr(local, "hit", False), False
        times.append((duration_secs, hit))
        if duration_secs >= _LONG:
            name = str(about.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")")
            say(f"{'read the kept' if hit else 'compiled'} {name} in {duration_secs:.1f} s")

    jax.monitoring.register_event_listener(hear)
    jax.monitoring.register_event_duration_secs_listener(hear_time)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(hear)
        jax.monitoring.unregister_event_duration_listener(hear_time)
        if times:
            kept = sum(hit for _, hit in times)
            say(
                f"compiled {len(times) - kept} programs and read {kept} kept ones "
                f"in {sum(seconds for seconds, _ in times):.1f} s"
            )


class Trace:
    """A profiler's trace of some steps, in the run's folder, for TensorBoard's profile page."""

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


def say(text: str) -> None:
    """Prints at once, from the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def clock(seconds: float) -> str:
    """3700 -> '1:01:40'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sub_network_name(sub_network: Sequence[int] | None) -> str:
    """(128, 624, 12) -> 't128_w624_l12'."""
    if sub_network is None:
        return "whole"
    tokens, width, depth = sub_network
    return f"t{tokens}_w{width}_l{depth}"
