"""Pictures of what a sweep found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.sweep import Point


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper one beats, by cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def plot_accuracy_flops(
    points: Sequence[Point], path: Path, title: str = "", alone: Point | None = None
) -> None:
    """Accuracy against GFLOPs of every sub-network: colour is tokens, size depth, shape width.

    alone: a model trained for one budget only, for comparison.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokens = sorted({p.num_tokens for p in points})
    widths = sorted({p.width for p in points})
    depth = max(p.depth for p in points)
    colours = {
        t: plt.get_cmap("viridis")(i / max(1, len(tokens) - 1)) for i, t in enumerate(tokens)
    }
    shapes = dict(zip(widths, "ov^sDP*X", strict=False))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for p in points:
        axes.scatter(
            p.gflops,
            100 * p.accuracy,
            s=10 + 50 * p.depth / depth,
            color=colours[p.num_tokens],
            marker=shapes.get(p.width, "o"),
            alpha=0.75,
            linewidths=0,
        )
    best = frontier(points)
    axes.plot([p.gflops for p in best], [100 * p.accuracy for p in best], "k-", lw=0.8)
    handles = [
        *(axes.scatter([], [], color=colours[t], label=f"{t} tokens") for t in tokens),
        *(axes.scatter([], [], color="grey", marker=shapes[w], label=f"width {w}") for w in widths),
        *(
            axes.scatter([], [], color="grey", s=10 + 50 * l / depth, label=f"depth {l}")
            for l in sorted({1, (depth + 1) // 2, depth})
        ),
        axes.plot([], [], "k-", lw=0.8, label="best at its cost")[0],
    ]
    if alone is not None:
        handles.append(
            axes.scatter(
                alone.gflops,
                100 * alone.accuracy,
                s=110,
                color="crimson",
                marker="x",
                label="trained for this budget alone",
            )
        )
    axes.set(xlabel="GFLOPs an image", ylabel="top-1 accuracy (%)", title=title, xscale="log")
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
