"""What a run reports: `metrics.csv`, TensorBoard events, and a line on the screen."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import tensorboardX

from adaperceiver_jax.train.chips import peak_flops

CSV = "metrics.csv"
BAD_IMAGES = "bad_images"
"""The metric that counts images that did not decode."""


class MetricsFile:
    """`metrics.csv`: a row a logged step; the same run gives the same file, interrupted or not."""

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

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def show_evaluation(run: str, step: int, values: Mapping[str, float], seconds: float) -> None:
    """Prints a line of what was evaluated."""
    results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    say(f"{run} step {step}: {results}  ({clock(seconds)})")


class Progress:
    """A line now and then: step, loss and its parts, images a second, time left."""

    def __init__(
        self,
        first: int,
        last: int,
        batch_size: int,
        flops: float,
        label: str = "",
    ) -> None:
        """The steps after `first` up to `last`, with `flops` a training image."""
        self._last, self._batch_size, self._flops = last, batch_size, flops
        self._label = f"{label} " if label else ""
        self._mark = (first, time.perf_counter())
        self._began: tuple[int, float] | None = None
        self._away = self._waited = 0.0

    def pause(self, seconds: float) -> None:
        """Time that was not spent on steps: evaluation, checkpoints."""
        self._away += seconds

    def speed(self, step: int, waited: float = 0.0) -> dict[str, float]:
        """Since the last call: images a second, a chip, MFU where the chip is known, and the part
        of the time in which steps waited for eigenvectors.

        waited: seconds of it so far.
        """
        now = time.perf_counter()
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
