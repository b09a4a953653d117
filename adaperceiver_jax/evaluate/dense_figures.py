"""Pictures of a dense sweep: what tokens, widths and depths cost and give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaperceiver_jax.evaluate.dense_table import DensePoint

TITLES = {
    "miou": "mIoU (%)",
    "rmse": "RMSE (m), mean over the images",
    "rmse_pixels": "RMSE (m), over all pixels",
}
COLOURS = {"trained": "tab:blue", "interpolated": "tab:green", "extrapolated": "gold"}
MARKS = "ov^sDP*X"


def tradeoff(points: Sequence[DensePoint], by: str) -> list[DensePoint]:
    """Those of trained token counts, over `by`, 'width' or 'depth', the other at its largest."""
    other = "depth" if by == "width" else "width"
    most = max(getattr(p, other) for p in points)
    return [p for p in points if getattr(p, other) == most and p.tokens_are == "trained"]


def plot_tradeoff(
    points: Sequence[DensePoint], metric: str, by: str, path: Path, title: str = ""
) -> None:
    """A metric against the encoder's GFLOPs: colour is tokens, shape `by`, 'width' or 'depth'.

    Figures 4 and 5 (width) and 11 and 13 (depth) of the paper, of `tradeoff`'s points.
    """
    points = tradeoff(points, by)
    tokens = sorted({p.num_tokens or 0 for p in points})
    values = sorted({getattr(p, by) for p in points})
    figure, axes, plt = _start(metric, title)
    for i, t in enumerate(tokens):
        line = sorted((p for p in points if p.num_tokens == t), key=lambda p: getattr(p, by))
        colour = plt.get_cmap("viridis")(i / max(1, len(tokens) - 1))
        x, y = [p.encoder_gflops for p in line], [_value(p, metric) for p in line]
        axes.plot(x, y, "-", color=colour, lw=1, label=f"{t} tokens")
        for p, at_x, at_y in zip(line, x, y, strict=True):
            mark = MARKS[values.index(getattr(p, by)) % len(MARKS)] if by == "width" else "o"
            size = 30 if by == "width" else 8 + 30 * getattr(p, by) / max(values)
            axes.scatter(at_x, at_y, s=size, color=colour, marker=mark)
    if by == "width":
        for w, mark in zip(values, MARKS, strict=False):
            axes.scatter([], [], color="grey", marker=mark, label=f"width {w}")
    else:
        for l in sorted({values[0], values[len(values) // 2], values[-1]}):
            size = 8 + 30 * l / max(values)
            axes.scatter([], [], color="grey", s=size, label=f"depth {l}")
    axes.set(xlabel="GFLOPs of the encoder, an image", xscale="log")
    _finish(figure, axes, path, plt)


def plot_tokens(points: Sequence[DensePoint], metric: str, path: Path, title: str = "") -> None:
    """A metric against the token count, trained or not: Figures 12 and 14 of the paper."""
    full = [max(getattr(p, name) for p in points) for name in ("width", "depth")]
    points = sorted(
        (p for p in points if [p.width, p.depth] == full), key=lambda p: p.num_tokens or 0
    )
    figure, axes, plt = _start(metric, title)
    axes.plot(
        [p.num_tokens for p in points], [_value(p, metric) for p in points], "-", color="grey", lw=1
    )
    for kind, colour in COLOURS.items():
        some = [p for p in points if p.tokens_are == kind]
        x, y = [p.num_tokens for p in some], [_value(p, metric) for p in some]
        axes.scatter(x, y, color=colour, edgecolors="black", linewidths=0.5, label=kind, zorder=2)
    axes.set_xscale("log", base=2)
    ticks = [p.num_tokens for p in points]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set(xlabel="latent tokens")
    _finish(figure, axes, path, plt)


def _value(point: DensePoint, metric: str) -> float:
    value = point.scores[metric]
    return 100 * value if metric == "miou" else value


def _start(metric: str, title: str) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set(ylabel=TITLES.get(metric, metric), title=title)
    axes.grid(alpha=0.3)
    return figure, axes, plt


def _finish(figure: Any, axes: Any, path: Path, plt: Any) -> None:
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
