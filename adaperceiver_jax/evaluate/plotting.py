"""The look that the figures of all sweeps share: colours, marks, axes and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KINDS = {"trained": "tab:blue", "interpolated": "tab:green", "extrapolated": "gold"}
MARKS = "ov^sDP*X"

Number = Callable[[Any], float]
"""What a point's place on an axis is."""


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
    """Adds the legend of `handles` (None is all that is labelled) and writes the picture."""
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


def token_colours(tokens: Sequence[int]) -> dict[int, Any]:
    """A colour a token count, few to many; none is like a colour of `KINDS`."""
    from matplotlib import colormaps

    plasma = colormaps["plasma"]
    return {t: plasma(0.75 * i / max(1, len(tokens) - 1)) for i, t in enumerate(tokens)}


def depth_size(depth: int, most: int) -> float:
    """The area of a mark, in square points."""
    return 8 + 50 * depth / most


def pareto(costs: Sequence[float], values: Sequence[float], lower: bool = False) -> list[int]:
    """Which points no cheaper one beats, cheapest first; lower: the lower value is the better."""
    sign = -1 if lower else 1
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if not best or sign * values[i] > sign * values[best[-1]]:
            best.append(i)
    return best


def draw_front(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    """The Pareto front, in order: a broad line behind the points."""
    axes.plot(xs, ys, "-", color="black", alpha=0.22, lw=5, zorder=1, label="Pareto front")


def tradeoff(points: Sequence[Any], by: str) -> list[Any]:
    """The points over `by`, 'width' or 'depth', the other at its largest."""
    other = "depth" if by == "width" else "width"
    most = max(getattr(p, other) for p in points)
    return [p for p in points if getattr(p, other) == most]


def whole(points: Sequence[Any]) -> list[Any]:
    """The points over token counts, width and depth at their largest, few tokens first."""
    most = tradeoff(tradeoff(points, "width"), "depth")
    return sorted(most, key=lambda p: p.num_tokens)


def check_values(points: Sequence[Any], name: str) -> None:
    """ValueError unless the points hold several values of `name`."""
    values = sorted({getattr(p, name) for p in points})
    if len(values) < 2:
        raise ValueError(f"{name}: the sweep holds only {values[0]}; sweep several")


def draw_tradeoff(
    axes: Any, points: Sequence[Any], by: str, cost: Number, value: Number, lower: bool = False
) -> None:
    """A line a trained token count, its points over `by`, and the Pareto front of all points.

    Colour is tokens; mark is width, size depth. Token counts that were not trained are small
    points of the colours of `KINDS`.
    """
    points = tradeoff(points, by)
    check_values(points, by)
    xs, ys = [cost(p) for p in points], [value(p) for p in points]
    best = pareto(xs, ys, lower)
    draw_front(axes, [xs[i] for i in best], [ys[i] for i in best])
    values = sorted({getattr(p, by) for p in points})

    def look(v: int) -> dict[str, Any]:
        if by == "depth":
            return dict(s=depth_size(v, values[-1]), marker="o")
        return dict(s=34, marker=MARKS[values.index(v) % len(MARKS)])

    trained = sorted({p.num_tokens for p in points if p.tokens_are == "trained"})
    for t, colour in token_colours(trained).items():
        line = sorted((p for p in points if p.num_tokens == t), key=lambda p: getattr(p, by))
        axes.plot(
            [cost(p) for p in line],
            [value(p) for p in line],
            color=colour,
            lw=1,
            label=f"{t} tokens",
        )
        for p in line:
            axes.scatter(cost(p), value(p), color=colour, zorder=3, **look(getattr(p, by)))
    shown = values if by == "width" else sorted({values[0], values[len(values) // 2], values[-1]})
    for v in shown:
        axes.scatter([], [], color="grey", label=f"{by} {v}", **look(v))
    for kind in ("interpolated", "extrapolated"):
        some = [p for p in points if p.tokens_are == kind]
        if some:
            style = dict(s=12, color=KINDS[kind], edgecolors="black", linewidths=0.3, zorder=4)
            places = [cost(p) for p in some], [value(p) for p in some]
            axes.scatter(*places, label=f"{kind} tokens", **style)
    scale_costs(axes, xs)


def draw_tokens(
    axes: Any, points: Sequence[Any], cost: Number, value: Number, lower: bool = False
) -> None:
    """Every token count at full width and depth, trained or not, and the Pareto front."""
    points = whole(points)
    check_values(points, "num_tokens")
    xs, ys = [cost(p) for p in points], [value(p) for p in points]
    best = pareto(xs, ys, lower)
    draw_front(axes, [xs[i] for i in best], [ys[i] for i in best])
    axes.plot(xs, ys, "-", color="grey", lw=1, zorder=2)
    for kind, colour in KINDS.items():
        some = [i for i, p in enumerate(points) if p.tokens_are == kind]
        if some:
            style = dict(s=40, color=colour, edgecolors="black", linewidths=0.5, zorder=3)
            places = [xs[i] for i in some], [ys[i] for i in some]
            axes.scatter(*places, label=f"{kind} tokens", **style)
    scale_costs(axes, xs)
    label_tokens(axes, points, xs, ys)


def label_tokens(
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
