"""Figures 2 and 8: accuracy against images a second, of the paper's models and of a sweep.

python -m experiments.paper.figure_2_8 SWEEP.csv --out figure_2_8.png    # or without a sweep

The paper's models are drawn from its table 5: the truncated view holds adaptive models of at least
80% alone, the expanded one all. SWEEP.csv has a panel of its own, since latencies of another device
and another data set cannot share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaperceiver_jax.evaluate.figures import ACCURACY, draw_throughput
from adaperceiver_jax.evaluate.plotting import draw_front, finish, pareto, scale_costs, start
from adaperceiver_jax.evaluate.points import Point, read_points
from experiments.paper.command import make_parser, refusals
from experiments.paper.table_5 import TABLE, Printed, read_table

BATCH = 512
ADAPTIVE = {
    "AdaPerceiver": ("crimson", "o"),
    "AdaPerceiver, bidirectional": ("tab:purple", "s"),
    "FlexiViT-B": ("tab:blue", "^"),
    "FlexiViT-L": ("navy", "v"),
    "HydraViT": ("tab:brown", "X"),
    "MatViT-B": ("yellowgreen", "D"),
    "MatViT-L": ("tab:green", "P"),
    "MatViT-L, 384 px": ("darkgreen", "*"),
}
SINGLE = {
    "DeiT": ("tab:orange", "<"),
    "DeiT3": ("tab:red", ">"),
    "ViT-H": ("black", "p"),
    "SoViT": ("tab:cyan", "h"),
}
NAMES = (  # how a family's models begin in the table, the longer first
    ("AdaPerceiver, Bidir.", "AdaPerceiver, bidirectional"),
    ("AdaPerceiver", "AdaPerceiver"),
    ("FlexViT-B", "FlexiViT-B"),
    ("FlexiViT-B", "FlexiViT-B"),
    ("MatViT-L/384px", "MatViT-L, 384 px"),
    *((name, name) for name in ("FlexiViT-L", "MatViT-L", "MatViT-B", "HydraViT")),
    *((name, name) for name in ("DeiT3", "DeiT", "ViT-H", "SoViT")),
)


def family(model: str) -> str:
    """The family of a row; ValueError if it is of none."""
    for beginning, name in NAMES:
        if model.startswith(beginning):
            return name
    raise ValueError(f"model={model!r}: must begin like one of {', '.join(n for n, _ in NAMES)}")


def throughput(row: Printed) -> float:
    """Images a second."""
    return 1e3 * BATCH / row.latency_ms


def draw_models(axes: Any, rows: Sequence[Printed]) -> None:
    """A line a family that adapts, a mark a model of the others, and the Pareto front of all."""
    best = [rows[i] for i in pareto([r.latency_ms for r in rows], [r.accuracy for r in rows])]
    draw_front(axes, [throughput(r) for r in best], [r.accuracy for r in best])
    for name, (colour, mark) in {**ADAPTIVE, **SINGLE}.items():
        some = sorted((r for r in rows if family(r.model) == name), key=throughput)
        if some:
            line = "-" if name in ADAPTIVE else "none"
            xs, ys = [throughput(r) for r in some], [r.accuracy for r in some]
            axes.plot(xs, ys, ls=line, color=colour, marker=mark, ms=5, lw=1, label=name)
    scale_costs(axes, [throughput(r) for r in rows])
    axes.set(xlabel=f"images a second, batch {BATCH}")


def draw(rows: Sequence[Printed], points: Sequence[Point], path: Path, title: str = "") -> None:
    """Two panels of the paper's models; a third where there are points."""
    panels = 3 if points else 2
    figure, grid = start("", ACCURACY, title, panels, width=2 + 4.5 * panels)
    truncated = [r for r in rows if family(r.model) in ADAPTIVE and r.accuracy >= 80]
    for axes, some, name in ((grid[0], truncated, "truncated"), (grid[1], rows, "expanded")):
        if not some:
            raise ValueError(f"{name}: no model to draw; needs adaptive models of at least 80%")
        draw_models(axes, some)
        axes.set_title(f"the paper's models, {name}", fontsize=10)
    handles = list(grid[1].get_legend_handles_labels()[0])
    if points:
        draw_throughput(grid[2], points)
        device = next((p.device for p in points if p.device), "")
        grid[2].set_title("the sweep" + (f", on {device}" if device else ""), fontsize=10)
        handles += [
            h for h in grid[2].get_legend_handles_labels()[0] if "front" not in h.get_label()
        ]
    finish(figure, path, handles)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser(__doc__, "figure_2_8.png")
    parser.add_argument("sweep", metavar="SWEEP.csv", type=Path, nargs="?", help="tools/sweep.py's")
    parser.add_argument(
        "--others",
        type=Path,
        default=TABLE,
        metavar="FILE",
        help="the paper's models (table_5.csv)",
    )
    options = parser.parse_args(arguments)
    with refusals(options.others):
        rows = read_table(options.others)
    with refusals(options.sweep or options.others):
        points = read_points(options.sweep) if options.sweep else []
        draw(rows, points, options.out, options.title)
    print(options.out)


if __name__ == "__main__":
    main()
