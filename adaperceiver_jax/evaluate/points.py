"""Sub-networks that a sweep measured: points, their CSV files, and the one to take (`plan`)."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", "Point", "DensePoint")
AXES = ("num_tokens", "width", "depth")
"""The arguments of a call that choose a sub-network."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One sub-network of a classifier: its accuracy and its costs."""

    num_tokens: int
    width: int
    depth: int
    accuracy: float
    """Top 1, in [0, 1]."""
    gflops: float
    """Per image."""
    top5: float | None = None
    """Top 5, in [0, 1]."""
    tokens_are: str = "trained"
    """'trained', 'interpolated' (between two trained counts) or 'extrapolated'."""
    latency_ms: float | None = None
    """Median time of a call."""
    memory_mib: float | None = None
    """The most that a call takes of the device, weights included."""
    batch: int | None = None
    """Images per call, for latency and memory."""
    device: str = ""
    """Where latency and memory were measured."""

    @property
    def throughput(self) -> float | None:
        """Images per second."""
        if self.latency_ms is None or self.batch is None:
            return None
        return 1e3 * self.batch / self.latency_ms

    @property
    def sub_network(self) -> dict[str, int]:
        """The arguments of a call: num_tokens, width, depth."""
        return {name: getattr(self, name) for name in AXES}


@dataclasses.dataclass(frozen=True)
class DensePoint:
    """One sub-network of a segmentation or depth model, at one resolution."""

    num_tokens: int | None
    """None, like width and depth, for a ViT."""
    width: int | None
    depth: int | None
    tokens_are: str
    """One of the kinds in `Point`, or 'whole' for a ViT."""
    resolution: str
    """'network': maps resized to what the network sees; 'own': predictions resized to theirs."""
    mask: str
    """Mask among the latents: 'block', 'causal' or 'none'; '' for a ViT."""
    flip: bool
    """True if maps were averaged with those of the mirror image."""
    scores: Mapping[str, float]
    encoder_gflops: float
    """Per image, up to the last block."""
    head_gflops: float
    """Per image: writing, the output adapter and the task's head, with resizing."""


_COSTS = ("encoder_gflops", "head_gflops")
"""Columns that stand behind a dense point's scores."""


def kind_of_tokens(num_tokens: int, trained: Sequence[int]) -> str:
    """The `tokens_are` of a token count."""
    if num_tokens in trained:
        return "trained"
    inside = min(trained) < num_tokens < max(trained)
    return "interpolated" if inside else "extrapolated"


def csv_rows(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """The content of a CSV file of mappings or dataclass instances; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = row if isinstance(row, Mapping) else vars(row)
        cells = (values.get(name) for name in columns)
        writer.writerow([f"{x:.7g}" if isinstance(x, float) else x for x in cells])
    return text.getvalue()


def flat(points: Iterable[Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns, and a row of values per point or other result; each score has its column."""
    rows = []
    for point in points:
        values = dict(vars(point))
        scores = values.pop("scores", {})
        rows.append(values | scores)
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=_COSTS.__contains__), rows


def csv_text(points: Iterable[Any]) -> str:
    """The content of a CSV file, one line per point; a value that was not measured is empty."""
    return csv_rows(*flat(points))


def read_points(path: str | os.PathLike) -> list[Point]:
    """The points of tools/sweep.py's CSV; ValueError names the line that holds none."""
    return _read(path, Point, "a sweep's CSV")


def read_dense_points(path: str | os.PathLike) -> list[DensePoint]:
    """The points of tools/evaluate.py's CSV; ValueError names the line that holds none."""
    return _read(path, DensePoint, "a CSV of tools/evaluate.py")


def _read(path: str | os.PathLike, kind: type[T], what: str) -> list[T]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for field in dataclasses.fields(kind):
            needed = field.default is dataclasses.MISSING and field.name != "scores"
            if needed and field.name not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: has no column {field.name}; must be {what}")
        points = []
        for row in reader:
            try:
                points.append(_point(kind, {name: text for name, text in row.items() if text}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not points:
        raise ValueError(f"{path}: holds no sub-network")
    return points


def _point(kind: type[T], row: dict[str, str]) -> T:
    """The point of a line without its empty cells. Columns that are no field are scores."""
    values: dict[str, Any] = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    has_scores = types.pop("scores", None)
    for field in dataclasses.fields(kind):
        if field.name in types and (field.name in row or field.default is dataclasses.MISSING):
            values[field.name] = _parse(field.name, row.pop(field.name, ""), types[field.name])
    if has_scores:
        values["scores"] = {name: _parse(name, text, "float") for name, text in row.items()}
    return kind(**values)


def _parse(name: str, text: str, kind: str) -> Any:
    if kind in ("str", "bool"):
        return text if kind == "str" else text == "True"
    if not text and "None" in kind:
        return None
    try:
        return (int if "int" in kind else float)(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: must be a number") from error


def pareto(costs: Sequence[float], values: Sequence[float], lower: bool = False) -> list[int]:
    """Indices of the points that no cheaper one beats, cheapest first.

    lower: a lower value is better.
    """
    sign = -1 if lower else 1
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if not best or sign * values[i] > sign * values[best[-1]]:
            best.append(i)
    return best


def frontier(points: Sequence[Point], cost: str = "gflops") -> list[Point]:
    """The points that no cheaper one beats, by cost ('gflops' or 'latency_ms')."""
    best = pareto([getattr(p, cost) for p in points], [p.accuracy for p in points])
    return [points[i] for i in best]


def plan(
    sweep: str | os.PathLike | Iterable[Point],
    *,
    max_gflops: float | None = None,
    max_ms: float | None = None,
) -> Point:
    """The most accurate sub-network of a sweep within a budget; of equals the cheapest.

    Args:
      sweep: the CSV of tools/sweep.py, or its points.
      max_gflops: per image.
      max_ms: per call with the sweep's batch, as measured on the sweep's device.
    """
    given = (("max_gflops", "gflops", max_gflops), ("max_ms", "latency_ms", max_ms))
    limits = [(name, cost, most) for name, cost, most in given if most is not None]
    if not limits:
        raise ValueError("max_gflops=None, max_ms=None: give at least one")
    points = read_points(sweep) if isinstance(sweep, str | os.PathLike) else list(sweep)
    if max_ms is not None and any(p.latency_ms is None for p in points):
        raise ValueError(f"max_ms={max_ms}: this sweep measured no time; drop --no-latency from it")
    fits = [p for p in points if all(getattr(p, cost) <= most for _, cost, most in limits)]
    if not fits:
        said = " and ".join(
            f"{name}={most:g} (the cheapest takes {min(getattr(p, cost) for p in points):.4g})"
            for name, cost, most in limits
        )
        raise ValueError(f"{said}: no sub-network of the sweep is within it")
    return min(fits, key=lambda p: (-p.accuracy, p.gflops, p.latency_ms or 0))
