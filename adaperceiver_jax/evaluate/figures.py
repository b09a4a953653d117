"""Pictures of what a classifier's sweep found: figures 2, 3, 9 and 10 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaperceiver_jax.evaluate.plotting import (
    MARKS,
    depth_size,
    draw_front,
    draw_tokens,
    draw_tradeoff,
    finish,
    label_tokens,
    scale_costs,
    start,
    token_colours,
    whole,
)
from adaperceiver_jax.evaluate.points import Point, frontier

COSTS = ("gflops", "latency_ms")
LEVELS = ((1.0, "C0"), (0.5, "C1"), (0.0, "C3"))
"""Where along the other two axes a line of `plot_axes` lies, and its colour."""
ACCURACY = "top-1 accuracy (%)"


def plot_accuracy_flops(
    points: Sequence[Point], path: Path, title: str = "", alone: Point | None = None
) -> None:
    """Accuracy against GFLOPs of every sub-network: colour is tokens, size depth, shape width.

    alone: a model trained for one budget only, for comparison.
    """
    tokens = sorted({p.num_tokens for p in points})
    widths = sorted({p.width for p in points})
    depth = max(p.depth for p in points)
    figure, (axes,) = start("GFLOPs an image", ACCURACY, title)
    colours = token_colours(tokens)
    shapes = {w: MARKS[i % len(MARKS)] for i, w in enumerate(widths)}
    for p in points:
        axes.scatter(
            p.gflops,
            _accuracy(p),
            s=depth_size(p.depth, depth),
            color=colours[p.num_tokens],
            marker=shapes[p.width],
            alpha=0.75,
            linewidths=0,
        )
    for t in tokens:
        axes.scatter([], [], color=colours[t], label=f"{t} tokens")
    for w in widths:
        axes.scatter([], [], color="grey", marker=shapes[w], label=f"width {w}")
    for l in sorted({1, (depth + 1) // 2, depth}):
        axes.scatter([], [], color="grey", s=depth_size(l, depth), label=f"depth {l}")
    _draw_frontier(axes, points, "gflops")
    if alone is not None:
        style = dict(s=110, color="crimson", marker="x", label="trained for this budget alone")
        axes.scatter(alone.gflops, _accuracy(alone), **style)
    scale_costs(axes, [p.gflops for p in points])
    finish(figure, path)


def plot_axes(points: Sequence[Point], path: Path, title: str = "") -> None:
    """Accuracy over tokens, width and depth, a panel each, with the other two at their largest,
    halfway and at their smallest, where they have so many. Token counts that were not trained are
    hollow."""
    from matplotlib.ticker import MaxNLocator

    axes_of = {"num_tokens": "tokens", "width": "width", "depth": "depth"}
    values = {name: sorted({getattr(p, name) for p in points}) for name in axes_of}
    at = {(p.num_tokens, p.width, p.depth): p for p in points}
    if len(at) < np.prod([len(v) for v in values.values()]):
        raise ValueError(
            "points: not every pair of their tokens, widths and depths is there; give a whole grid"
        )
    figure, panels = start("", "", title, panels=3, width=10, sharey=True)
    panels[0].set_ylabel(ACCURACY)
    for axes, (by, label) in zip(panels, axes_of.items(), strict=True):
        axes.set_xlabel(label)
        drawn = set()
        for share, colour in LEVELS:
            fixed = {o: v[round(share * (len(v) - 1))] for o, v in values.items() if o != by}
            if tuple(fixed.values()) in drawn:  # too few values for one halfway
                continue
            drawn.add(tuple(fixed.values()))
            line = [at[tuple({**fixed, by: v}[o] for o in values)] for v in values[by]]
            said = ", ".join(f"{axes_of[o]} {v}" for o, v in fixed.items())
            axes.plot(values[by], [_accuracy(p) for p in line], color=colour, lw=1.4, label=said)
            for p in line:
                filled = colour if p.tokens_are == "trained" else "white"
                axes.plot(getattr(p, by), _accuracy(p), "o", ms=5, color=colour, mfc=filled)
        axes.legend(loc="lower right", fontsize=8)
        if by != "depth":
            axes.set_xscale("log", base=2)
            axes.set_xticks(values[by], [f"{v}" for v in values[by]], fontsize=8)
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.2 * (high - low), high)  # room for the legends
    finish(figure, path, handles=[])


def plot_tradeoff(points: Sequence[Point], by: str, x: str, path: Path, title: str = "") -> None:
    """Accuracy against x, 'gflops' or 'latency_ms', a line a trained token count.

    Figures 3 (by 'width', at full depth) and 9 (by 'depth', at full width) of the paper.
    """
    figure, (axes,) = start(_label(points, x), ACCURACY, title)
    draw_tradeoff(axes, points, by, lambda p: getattr(p, x), _accuracy)
    finish(figure, path)


def plot_tokens(points: Sequence[Point], x: str, path: Path, title: str = "") -> None:
    """Accuracy against x of every token count, trained or not: figure 10 of the paper."""
    figure, (axes,) = start(_label(points, x), ACCURACY, title)
    draw_tokens(axes, points, lambda p: getattr(p, x), _accuracy)
    finish(figure, path)


def draw_throughput(axes: Any, points: Sequence[Point]) -> None:
    """Accuracy against images a second: the model's part of figures 2 and 8 of the paper.

    The line is over token counts at full width and depth; grey points are all other sub-networks.
    """
    _check_measured(points)
    axes.set(xlabel=f"images a second, batch {_batch(points)}")
    xs, ys = [p.throughput or 0.0 for p in points], [_accuracy(p) for p in points]
    axes.scatter(xs, ys, s=8, color="silver", label="another width or depth")
    _draw_frontier(axes, points, "throughput")
    line = whole(points)
    line_xs, line_ys = [p.throughput or 0.0 for p in line], [_accuracy(p) for p in line]
    axes.plot(line_xs, line_ys, "o-", color="crimson", ms=5, lw=1.2, label="full width and depth")
    scale_costs(axes, xs)
    label_tokens(axes, line, line_xs, line_ys)


def _draw_frontier(axes: Any, points: Sequence[Point], x: str) -> None:
    best = frontier(points, "gflops" if x == "gflops" else "latency_ms")
    draw_front(axes, [getattr(p, x) for p in best], [_accuracy(p) for p in best])


def _accuracy(point: Point) -> float:
    return 100 * point.accuracy


def _label(points: Sequence[Point], x: str) -> str:
    """What the x axis says; ValueError unless every point has its place there."""
    if x not in COSTS:
        raise ValueError(f"x={x!r}: must be one of {', '.join(COSTS)}")
    if x == "gflops":
        return "GFLOPs an image"
    _check_measured(points)
    return f"latency of a batch of {_batch(points)} (ms)"


def _check_measured(points: Sequence[Point]) -> None:
    for p in points:
        if p.latency_ms is None or p.batch is None:
            raise ValueError(
                f"latency_ms: not measured at {p.num_tokens} tokens, width {p.width}, depth "
                f"{p.depth}; tools/sweep.py measures it unless told --no-latency"
            )


def _batch(points: Sequence[Point]) -> int:
    """The one batch size; latencies of several cannot share an axis."""
    sizes = {p.batch or 0 for p in points}
    if len(sizes) > 1:
        raise ValueError(f"batch: the sweep holds {sorted(sizes)}; must be one size, sweep again")
    return sizes.pop()
