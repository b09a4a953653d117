"""The paper's figures, each drawn from a sweep of yours.

python -m experiments.paper.figures 3 classify.csv --out figure_3.png       # of tools/sweep.py
python -m experiments.paper.figures 4 segment.csv --out figure_4.png        # of tools/evaluate.py
python -m experiments.paper.figures 2_8 --out figure_2_8.png                # or with a sweep

  a classifier    accuracy: 2_8 against images a second, 3 over widths, 9 depths, 10 tokens
  segmentation    mIoU on ADE20K against the encoder's GFLOPs: 4 over widths, 11 depths, 12 tokens
  depth           RMSE on NYUv2 against the encoder's GFLOPs: 5 over widths, 13 depths, 14 tokens

Figures over widths or depths also vary the token count; those over tokens show counts that were
trained, lie between those, or beyond. Sizes that do not vary are the largest of the sweep. Where
the paper breaks its x axis, ours is logarithmic as soon as costs differ by more than 5 x.

2_8 draws the paper's models from its table 5: the truncated view holds adaptive models of at least
80% alone, the expanded one all. A sweep gets a panel of its own, since latencies of another device
and another data set cannot share one. Figures 15 to 17 are drawn by experiments/paper/pca.py.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaperceiver_jax.evaluate import figures
from adaperceiver_jax.evaluate.figures import draw_front, finish, scale_costs, start
from adaperceiver_jax.evaluate.points import (
    DensePoint,
    Point,
    pareto,
    read_dense_points,
    read_points,
)
from experiments.paper.shared import refusals
from experiments.paper.table_5 import Printed, read_table

BATCH = 512


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of one sweep."""

    metrics: tuple[str, ...]
    """Columns of a dense sweep, of which the first that it holds is drawn; () for a classifier."""
    vary: str
    """'width', 'depth' or 'num_tokens'."""


CLASSIFIER, SEGMENTATION, DEPTH = (), ("miou",), ("rmse", "eigen_rmse")
FIGURES = {
    **{"3": Figure(CLASSIFIER, "width"), "9": Figure(CLASSIFIER, "depth")},
    "10": Figure(CLASSIFIER, "num_tokens"),
    **{"4": Figure(SEGMENTATION, "width"), "11": Figure(SEGMENTATION, "depth")},
    "12": Figure(SEGMENTATION, "num_tokens"),
    **{"5": Figure(DEPTH, "width"), "13": Figure(DEPTH, "depth")},
    "14": Figure(DEPTH, "num_tokens"),
}
MODELS = "2_8"
WITH_X = [name for name, figure in FIGURES.items() if not figure.metrics]
"""Figures whose x axis can be chosen."""
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
SPELLED = {
    "AdaPerceiver, Bidir.": "AdaPerceiver, bidirectional",
    "FlexViT-B": "FlexiViT-B",
    "MatViT-L/384px": "MatViT-L, 384 px",
}
"""Beginnings of models in the table that are not their family's name."""


def read(figure: Figure, sweep: Path, x: str | None) -> tuple[Sequence[Any], str, str]:
    """Points of a figure and the names of its x and y; ValueError if the sweep lacks them."""
    points: Sequence[Any]
    if not figure.metrics:
        points, y = read_points(sweep), "accuracy"
        x = x or ("gflops" if figure.vary == "num_tokens" else "latency_ms")
    else:
        points, x = read_dense(sweep), "encoder_gflops"
        y = next((name for name in figure.metrics if name in points[0].scores), "")
        if not y:
            name = figure.metrics[0]
            raise ValueError(f"has no column {name}; must be a sweep of the figure's task")
    points = figures.along(points, "num_tokens", figure.vary)
    figures.check_points(points, x, figure.vary)
    return points, x, y


def read_measured(sweep: Path) -> list[Point]:
    """A classifier's points; ValueError if their latencies cannot be compared."""
    points = read_points(sweep)
    figures.check_points(points, "latency_ms")
    return points


def read_dense(path: Path) -> list[DensePoint]:
    """An AdaPerceiver's points at the network's resolution; ValueError if there are none."""
    points = read_dense_points(path)
    points = [p for p in points if p.resolution == "network" and p.num_tokens is not None]
    if not points:
        raise ValueError("holds no sub-network at the network's resolution")
    return points


def family(model: str) -> str:
    """The family of a row of the table."""
    names = SPELLED | {name: name for name in (*ADAPTIVE, *SINGLE)}
    return names[max(filter(model.startswith, names), key=len)]


def throughput(row: Printed) -> float:
    """Images a second."""
    return 1e3 * BATCH / row.latency_ms


def draw_models(axes: Any, rows: Sequence[Printed]) -> None:
    """A line per family that adapts, a mark per model of the others, the Pareto front of all."""
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


def draw_throughput(points: Sequence[Point], path: Path) -> None:
    """Draws figure 2_8: two panels of the paper's models; a third where there are points."""
    rows, panels = read_table(), 3 if points else 2
    picture, grid = start("", figures.ACCURACY, "", panels, width=2 + 4.5 * panels)
    truncated = [r for r in rows if family(r.model) in ADAPTIVE and r.accuracy >= 80]
    for axes, some, name in ((grid[0], truncated, "truncated"), (grid[1], rows, "expanded")):
        draw_models(axes, some)
        axes.set_title(f"the paper's models, {name}", fontsize=10)
    handles = list(grid[1].get_legend_handles_labels()[0])
    if points:
        figures.draw_throughput(grid[2], points)
        device = next((p.device for p in points if p.device), "")
        grid[2].set_title("the sweep" + (f", on {device}" if device else ""), fontsize=10)
        shown = grid[2].get_legend_handles_labels()[0]
        handles += [handle for handle in shown if "front" not in handle.get_label()]
    finish(picture, path, handles)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a figure; prints its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=[MODELS, *FIGURES], help="its number in the paper")
    parser.add_argument("sweep", metavar="SWEEP.csv", type=Path, nargs="?", help="all but 2_8 need")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (figure_N.png)")
    x_help = f"x axis of {', '.join(WITH_X)} (latency_ms; 10: gflops)"
    parser.add_argument("--x", choices=figures.COSTS, help=x_help)
    options = parser.parse_args(arguments)
    out = options.out or Path(f"figure_{options.figure}.png")
    if options.sweep is None and options.figure != MODELS:
        parser.error(f"figure {options.figure} is drawn from a sweep: give SWEEP.csv")
    if options.x is not None and options.figure not in WITH_X:
        parser.error(f"figure {options.figure} takes no --x; figures {', '.join(WITH_X)} do")
    if options.figure == MODELS:
        with refusals(options.sweep):
            measured = read_measured(options.sweep) if options.sweep else []
        draw_throughput(measured, out)
    else:
        figure = FIGURES[options.figure]
        with refusals(options.sweep):
            points, x, y = read(figure, options.sweep, options.x)
        if figure.vary == "num_tokens":
            figures.plot_tokens(points, x, y, out)
        else:
            figures.plot_tradeoff(points, figure.vary, x, y, out)
    print(out)


if __name__ == "__main__":
    main()
