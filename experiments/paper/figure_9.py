"""Figure 9: accuracy against latency over depths and token counts.

python -m experiments.paper.figure_9 SWEEP.csv --out figure_9.png

The width is the largest of the sweep. --x gflops needs no measured latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.figures import plot_tradeoff
from adaperceiver_jax.evaluate.points import Point
from experiments.paper.command import classification


def draw(points: list[Point], x: str, path: Path, title: str) -> None:
    plot_tradeoff(points, "depth", x, path, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    classification(__doc__, "figure_9.png", draw, "latency_ms", arguments)


if __name__ == "__main__":
    main()
