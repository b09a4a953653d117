"""Pictures of sweeps: what sub-networks cost and give (figures 2 to 5 and 9 to 14 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaperceiver_jax.evaluate.points import AXES, Point, frontier, pareto

COSTS = ("gflops", "latency_ms")
"""The x axes of a classifier's points."""
ACCURACY = "top-1 accuracy (%)"
LABELS = {
    "num_tokens": "tokens",
    "gflops": "GFLOPs an image",
    "latency_ms": "latency of a batch of {batch} (ms)",
    "encoder_gflops": "GFLOPs of the encoder, an image",
    "accuracy": ACCURACY,
    "miou": "mIoU (%)",
    "rmse": "RMSE (m), mean over the images",
    "rmse_pixels": "RMSE (m), over all pixels",
    "eigen_rmse": "RMSE (m), Eigen's crop, mean over the images",
}
PERCENT = ("accuracy", "miou")
"""Values that are shown in percent, the higher the better. All others are errors."""
KINDS = {"trained": "tab:blue", "interpolated": "tab:green", "extrapolated": "gold"}
MARKS = "ov^sDP*X"
LEVELS = ((1.0, "C0"), (0.5, "C1"), (0.0, "C3"))
"""Where along the other two axes a line of `plot_axes` lies, and its colour."""


def along(points: Sequence[Any], *axes: str) -> list[Any]:
    """The points along these of AXES, smallest first; the other axes are at their largest."""
    for name in AXES:
        if name not in axes:
            most = max(getattr(p, name) for p in points)
            points = [p for p in points if getattr(p, name) == most]
    return sorted(points, key=lambda p: [getattr(p, name) for name in axes])


def value_of(point: Any, name: str) -> float:
    """A value or a dense model's score, as it is shown."""
    scores = getattr(point, "scores", {})
    value = scores[name] if name in scores else getattr(point, name)
    return 100 * value if name in PERCENT else value


def check_points(points: Sequence[Any], x: str, by: str | None = None) -> int | None:
    """ValueError if the points have no x to compare, or only one value of `by`.

    Returns the batch size of their latencies if x is 'latency_ms', else None.
    """
    known = [name for name in (*COSTS, "encoder_gflops") if hasattr(points[0], name)]
    if x not in known:
        raise ValueError(f"x={x!r}: must be one of {', '.join(known)}")
    if by is not None and len(values := {getattr(p, by) for p in points}) < 2:
        raise ValueError(f"{by}: the sweep holds only {values.pop()}; sweep several")
    return _batch(points) if x == "latency_ms" else None


def plot_tradeoff(
    points: Sequence[Any], by: str, x: str, y: str, path: Path, title: str = ""
) -> None:
    """A line per trained token count over `by`, 'width' or 'depth', the other at its largest.

    Colour is tokens; mark is width, size depth. Untrained token counts are small points.

    Args:
      points: of a classifier (`Point`) or of a dense model (`DensePoint`).
      x: the cost, one of LABELS.
      y: 'accuracy', or one of the dense points' scores.
    """
    points = along(points, "num_tokens", by)
    figure, axes = _start_tradeoff(points, by, x, y, title)
    values = sorted({getattr(p, by) for p in points})

    def look(v: int) -> dict[str, Any]:
        if by == "depth":
            return dict(s=_area(v, values[-1]), marker="o")
        return dict(s=34, marker=MARKS[values.index(v) % len(MARKS)])

    trained = sorted({p.num_tokens for p in points if p.tokens_are == "trained"})
    for t, colour in _token_colours(trained).items():
        line = [p for p in points if p.num_tokens == t]
        xs, ys = _places(line, x, y)
        axes.plot(xs, ys, color=colour, lw=1, label=f"{t} tokens")
        for p, *place in zip(line, xs, ys, strict=True):
            axes.scatter(*place, color=colour, zorder=3, **look(getattr(p, by)))
    shown = values if by == "width" else sorted({values[0], values[len(values) // 2], values[-1]})
    for v in shown:
        axes.scatter([], [], color="grey", label=f"{by} {v}", **look(v))
    _draw_kinds(axes, points, x, y, s=12, linewidths=0.3, zorder=4, but="trained")
    scale_costs(axes, [getattr(p, x) for p in points])
    finish(figure, path)


def plot_tokens(points: Sequence[Any], x: str, y: str, path: Path, title: str = "") -> None:
    """Every token count, trained or not, at full width and depth; arguments as `plot_tradeoff`."""
    points = along(points, "num_tokens")
    figure, axes = _start_tradeoff(points, "num_tokens", x, y, title)
    xs, ys = _places(points, x, y)
    axes.plot(xs, ys, "-", color="grey", lw=1, zorder=2)
    _draw_kinds(axes, points, x, y, s=40, linewidths=0.5, zorder=3)
    scale_costs(axes, xs)
    _label_tokens(axes, points, xs, ys)
    finish(figure, path)


def plot_accuracy_flops(
    points: Sequence[Point], path: Path, title: str = "", alone: Point | None = None
) -> None:
    """Accuracy against GFLOPs of every sub-network: colour is tokens, size depth, mark width.

    alone: a model trained for one budget only, for comparison.
    """
    tokens = sorted({p.num_tokens for p in points})
    widths = sorted({p.width for p in points})
    depth = max(p.depth for p in points)
    figure, (axes,) = start(LABELS["gflops"], ACCURACY, title)
    colours = _token_colours(tokens)
    marks = {w: MARKS[i % len(MARKS)] for i, w in enumerate(widths)}
    for p in points:
        look = dict(s=_area(p.depth, depth), color=colours[p.num_tokens], marker=marks[p.width])
        axes.scatter(p.gflops, value_of(p, "accuracy"), alpha=0.75, linewidths=0, **look)
    for t in tokens:
        axes.scatter([], [], color=colours[t], label=f"{t} tokens")
    for w in widths:
        axes.scatter([], [], color="grey", marker=marks[w], label=f"width {w}")
    for l in sorted({1, (depth + 1) // 2, depth}):
        axes.scatter([], [], color="grey", s=_area(l, depth), label=f"depth {l}")
    draw_front(axes, *_places(frontier(points), "gflops", "accuracy"))
    if alone is not None:
        style = dict(s=110, color="crimson", marker="x", label="trained for this budget alone")
        axes.scatter(alone.gflops, value_of(alone, "accuracy"), **style)
    scale_costs(axes, [p.gflops for p in points])
    finish(figure, path)


def plot_axes(points: Sequence[Point], path: Path, title: str = "") -> None:
    """Accuracy over tokens, width and depth, one panel each, with the other two at their largest,
    halfway and at their smallest. Token counts that were not trained are hollow."""
    from matplotlib.ticker import MaxNLocator

    values = {name: sorted({getattr(p, name) for p in points}) for name in AXES}
    at = {(p.num_tokens, p.width, p.depth): p for p in points}
    if len(at) < np.prod([len(v) for v in values.values()]):
        raise ValueError(
            "points: not every pair of their tokens, widths and depths is there; give a whole grid"
        )
    figure, panels = start("", "", title, panels=3, width=10, sharey=True)
    panels[0].set_ylabel(ACCURACY)
    for axes, by in zip(panels, AXES, strict=True):
        axes.set_xlabel(LABELS.get(by, by))
        drawn = set()
        for share, colour in LEVELS:
            fixed = {o: v[round(share * (len(v) - 1))] for o, v in values.items() if o != by}
            if tuple(fixed.values()) in drawn:  # too few values for one halfway
                continue
            drawn.add(tuple(fixed.values()))
            line = [at[tuple({**fixed, by: v}[o] for o in values)] for v in values[by]]
            said = ", ".join(f"{LABELS.get(o, o)} {v}" for o, v in fixed.items())
            xs, ys = _places(line, by, "accuracy")
            axes.plot(xs, ys, color=colour, lw=1.4, label=said)
            for p, *place in zip(line, xs, ys, strict=True):
                filled = colour if p.tokens_are == "trained" else "white"
                axes.plot(*place, "o", ms=5, color=colour, mfc=filled)
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


def draw_throughput(axes: Any, points: Sequence[Point]) -> None:
    """Accuracy against images per second: the model's part of figures 2 and 8 of the paper.

    The line is over token counts at full width and depth; grey points are all other sub-networks.
    """
    batch = check_points(points, "latency_ms")
    axes.set(xlabel=f"images a second, batch {batch}")
    xs, ys = _places(points, "throughput", "accuracy")
    axes.scatter(xs, ys, s=8, color="silver", label="another width or depth")
    draw_front(axes, *_places(frontier(points, "latency_ms"), "throughput", "accuracy"))
    line = along(points, "num_tokens")
    places = _places(line, "throughput", "accuracy")
    axes.plot(*places, "o-", color="crimson", ms=5, lw=1.2, label="full width and depth")
    scale_costs(axes, xs)
    _label_tokens(axes, line, *places)


def start(
    xlabel: str,
    ylabel: str,
    title: str = "",
    panels: int = 1,
    width: float = 8,
    sharey: bool = False,
) -> tuple[Any, Sequence[Any]]:
    """A figure and its axes, side by side."""
    from matplotlib.figure import Figure  # not pyplot, whose state is the caller's

    figure = Figure(figsize=(width, 4.8), layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, sharey=sharey)
    for axes in grid[0]:
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure, grid[0]


def finish(figure: Any, path: Path, handles: Sequence[Any] | None = None) -> None:
    """Adds the legend of `handles`, None for all that is labelled, and writes the picture."""
    some = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, **some)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def scale_costs(axes: Any, costs: Sequence[float], most: float = 5) -> None:
    """A logarithmic x axis where costs differ by more than `most` x."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if max(costs) > most * min(costs) > 0:
        axes.set_xscale("log")
        ticks = (1, 2, 5) if max(costs) > 10 * min(costs) else (1, 1.5, 2, 3, 4, 6, 8)
        axes.xaxis.set_major_locator(LogLocator(subs=ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())


def draw_front(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    """The Pareto front, in order: a broad line behind the points."""
    axes.plot(xs, ys, "-", color="black", alpha=0.22, lw=5, zorder=1, label="Pareto front")


def _start_tradeoff(points: Sequence[Any], by: str, x: str, y: str, title: str) -> tuple[Any, Any]:
    """A figure and its axes with the Pareto front; ValueError where nothing can be compared."""
    batch = check_points(points, x, by)
    figure, (axes,) = start(LABELS[x].format(batch=batch), LABELS.get(y, y), title)
    xs, ys = _places(points, x, y)
    best = pareto(xs, ys, lower=y not in PERCENT)
    draw_front(axes, [xs[i] for i in best], [ys[i] for i in best])
    return figure, axes


def _places(points: Sequence[Any], x: str, y: str) -> tuple[list[float], list[float]]:
    return [getattr(p, x) for p in points], [value_of(p, y) for p in points]


def _batch(points: Sequence[Point]) -> int:
    """The one batch size of the latencies; those of several cannot share an axis."""
    for p in points:
        if p.latency_ms is None or p.batch is None:
            raise ValueError(
                f"latency_ms: not measured at {p.num_tokens} tokens, width {p.width}, depth "
                f"{p.depth}; tools/sweep.py measures it unless told --no-latency"
            )
    sizes = {p.batch or 0 for p in points}
    if len(sizes) > 1:
        raise ValueError(f"batch: the sweep holds {sorted(sizes)}; must be one size, sweep again")
    return sizes.pop()


def _token_colours(tokens: Sequence[int]) -> dict[int, Any]:
    """A colour per token count, few to many; none is like a colour of `KINDS`."""
    from matplotlib import colormaps

    plasma = colormaps["plasma"]
    return {t: plasma(0.75 * i / max(1, len(tokens) - 1)) for i, t in enumerate(tokens)}


def _area(depth: int, most: int) -> float:
    """The area of a depth's mark, in square points."""
    return 8 + 50 * depth / most


def _draw_kinds(
    axes: Any, points: Sequence[Any], x: str, y: str, but: str = "", **style: Any
) -> None:
    """Points in the colours of KINDS, all `but` one kind."""
    for kind, colour in KINDS.items():
        some = [p for p in points if p.tokens_are == kind != but]
        if some:
            look = dict(color=colour, edgecolors="black", label=f"{kind} tokens", **style)
            axes.scatter(*_places(some, x, y), **look)


def _label_tokens(
    axes: Any, points: Sequence[Any], xs: Sequence[float], ys: Sequence[float]
) -> None:
    """Writes token counts above their points, trained ones first, where there is room."""
    from matplotlib.patheffects import withStroke

    axes.margins(y=0.12)
    outlined = dict(path_effects=[withStroke(linewidth=2.5, foreground="white")], zorder=5)
    places = axes.transData.transform(list(zip(xs, ys, strict=True)))
    written: list[Any] = []
    for i in sorted(range(len(points)), key=lambda i: points[i].tokens_are != "trained"):
        x, y = places[i]
        text = str(points[i].num_tokens)
        if all(abs(x - at_x) > 8 * len(text) or abs(y - at_y) > 16 for at_x, at_y in written):
            written.append((x, y))
            look = dict(xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
            axes.annotate(text, (xs[i], ys[i]), **look, **outlined)
