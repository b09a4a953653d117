"""Figure 11: mIoU on ADE20K against the encoder's GFLOPs, over depths and token counts.

python -m experiments.paper.figure_11 SWEEP.csv --out figure_11.png

The width is the largest of the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.dense_figures import plot_tradeoff
from adaperceiver_jax.evaluate.dense_table import DensePoint
from experiments.paper.command import dense


def draw(points: list[DensePoint], metric: str, path: Path, title: str) -> None:
    plot_tradeoff(points, metric, "depth", path, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    dense(__doc__, "figure_11.png", ("miou",), draw, arguments)


if __name__ == "__main__":
    main()
