"""What a sweep of a dense model found, as a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.models.vit import ViTConfig

COSTS = ("encoder_gflops", "head_gflops")


@dataclasses.dataclass(frozen=True)
class DensePoint:
    """One sub-network at one resolution."""

    num_tokens: int | None
    """None, as width and depth, for a ViT."""
    width: int | None
    depth: int | None
    tokens_are: str
    """'trained', 'interpolated' (between two trained counts), 'extrapolated' or 'whole' (a ViT)."""
    resolution: str
    """'network': maps resized to what the network sees; 'own': predictions resized to theirs."""
    mask: str
    """Among the latents: 'block', 'causal' or 'none'; '' for a ViT."""
    flip: bool
    """Whether maps were averaged with those of the mirror image."""
    scores: Mapping[str, float]
    encoder_gflops: float
    """Of one image, up to the last block."""
    head_gflops: float
    """Of writing, the output adapter and the task's head, resizing to the image included."""


def gflops_of(
    config: Any, sub_network: tuple[int, int, int] | None, image_size: tuple[int, int]
) -> tuple[float, float]:
    """GFLOPs of one image, encoder and head."""
    num_tokens, width, depth = sub_network or (None, None, None)
    cost = flops(config, num_tokens, width, depth, image_size)
    return cost.encoder / 1e9, cost.head / 1e9


def rows(points: Sequence[DensePoint]) -> list[dict[str, Any]]:
    """A flat row a point; None is empty."""
    flat = []
    for point in points:
        row = dataclasses.asdict(point)
        scores = row.pop("scores")
        costs = {name: row.pop(name) for name in COSTS}
        flat.append({**row, **scores, **{name: float(f"{x:.6g}") for name, x in costs.items()}})
    return flat


def columns(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all rows, costs last."""
    names = list(dict.fromkeys(name for row in flat for name in row))
    return sorted(names, key=lambda name: name in COSTS)  # keeps their order otherwise


def csv_text(points: Sequence[DensePoint]) -> str:
    """The content of a CSV file, a line a point."""
    flat, text = rows(points), io.StringIO()
    writer = csv.DictWriter(text, columns(flat), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def read_csv(path: Path) -> list[DensePoint]:
    """The points of a file that `csv_text` wrote."""
    points = []
    fixed = [field.name for field in dataclasses.fields(DensePoint) if field.name != "scores"]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sizes = {n: int(row[n]) if row[n] else None for n in ("num_tokens", "width", "depth")}
            scores = {n: float(value) for n, value in row.items() if n not in fixed and value}
            points.append(
                DensePoint(
                    **sizes,
                    tokens_are=row["tokens_are"],
                    resolution=row["resolution"],
                    mask=row["mask"],
                    flip=row["flip"] == "True",
                    scores=scores,
                    encoder_gflops=float(row["encoder_gflops"]),
                    head_gflops=float(row["head_gflops"]),
                )
            )
    return points


def trained_granularities(config: Any, also: Sequence[int] = ()) -> tuple[int, ...]:
    """Token counts that a dense model was trained at; none of a ViT."""
    backbone = config.backbone
    if isinstance(backbone, ViTConfig):
        return ()
    return tuple(sorted({*backbone.token_granularities, *also}))
