"""What a sweep of a classifier found, as a CSV file, and the sub-network to take from it."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adaperceiver_jax.evaluate.csv_rows import csv_rows


@dataclasses.dataclass(frozen=True)
class Point:
    """One sub-network: how right it is, and what it costs."""

    num_tokens: int
    width: int
    depth: int
    accuracy: float
    """Top 1, in [0, 1]."""
    gflops: float
    """Of one image."""
    top5: float | None = None
    """In [0, 1]."""
    tokens_are: str = "trained"
    """'trained', 'interpolated' (between two trained counts) or 'extrapolated'."""
    latency_ms: float | None = None
    """Of one call, the median."""
    memory_mib: float | None = None
    """The most that a call takes of the device, weights included."""
    batch: int | None = None
    """Images a call, of latency and memory."""
    device: str = ""
    """That latency and memory are of."""

    @property
    def throughput(self) -> float | None:
        """Images a second."""
        if self.latency_ms is None or self.batch is None:
            return None
        return 1e3 * self.batch / self.latency_ms

    @property
    def sub_network(self) -> dict[str, int]:
        """The arguments of a call: num_tokens, width, depth."""
        return {"num_tokens": self.num_tokens, "width": self.width, "depth": self.depth}


COLUMNS = tuple(field.name for field in dataclasses.fields(Point))


def kind_of_tokens(num_tokens: int, trained: Sequence[int]) -> str:
    """How a token count lies to the trained ones."""
    if num_tokens in trained:
        return "trained"
    inside = min(trained) < num_tokens < max(trained)
    return "interpolated" if inside else "extrapolated"


def csv_text(points: Iterable[Point]) -> str:
    """The content of a CSV file, a line a point; what was not measured is empty."""
    return csv_rows(COLUMNS, points)


def read_points(path: str | os.PathLike) -> list[Point]:
    """The points of a file that `csv_text` wrote; ValueError names the line that is none."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = ("num_tokens", "width", "depth", "accuracy", "gflops")
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: has no column {missing[0]}; must be a sweep's CSV")
        points = []
        for row in reader:
            try:
                points.append(_point(row))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not points:
        raise ValueError(f"{path}: holds no sub-network")
    return points


def _point(row: dict[str, str]) -> Point:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Point):
        text = row.get(field.name) or ""
        if not text and field.default is not dataclasses.MISSING:
            continue
        kind = str if field.type == "str" else int if "int" in str(field.type) else float
        try:
            values[field.name] = kind(text)
        except ValueError as error:
            raise ValueError(f"{field.name}={text!r}: must be a number") from error
    return Point(**values)


def frontier(points: Sequence[Point], cost: str = "gflops") -> list[Point]:
    """The points that no cheaper one beats, by cost ('gflops' or 'latency_ms')."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (getattr(p, cost), -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def plan(
    sweep: str | os.PathLike | Iterable[Point],
    *,
    max_gflops: float | None = None,
    max_ms: float | None = None,
) -> Point:
    """The most accurate sub-network of a sweep within a budget; of equals the cheapest.

    Args:
      sweep: the CSV of tools/sweep.py, or its points.
      max_gflops: of one image.
      max_ms: of one call with the sweep's batch, as measured on the sweep's device.
    """
    if max_gflops is None and max_ms is None:
        raise ValueError("max_gflops=None, max_ms=None: give at least one")
    points = read_points(sweep) if isinstance(sweep, str | os.PathLike) else list(sweep)
    if max_ms is not None and any(p.latency_ms is None for p in points):
        raise ValueError(f"max_ms={max_ms}: this sweep measured no time; drop --no-latency from it")
    fits = [
        p
        for p in points
        if (max_gflops is None or p.gflops <= max_gflops)
        and (max_ms is None or (p.latency_ms or 0) <= max_ms)
    ]
    if not fits:
        limits = {"max_gflops": (max_gflops, "gflops"), "max_ms": (max_ms, "latency_ms")}
        said = " and ".join(
            f"{name}={limit:g} (the cheapest takes {min(getattr(p, of) for p in points):.4g})"
            for name, (limit, of) in limits.items()
            if limit is not None
        )
        raise ValueError(f"{said}: no sub-network of the sweep is within it")
    return min(fits, key=lambda p: (-p.accuracy, p.gflops, p.latency_ms or 0))
