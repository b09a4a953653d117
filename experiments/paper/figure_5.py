"""Figure 5: RMSE on NYUv2 against the encoder's GFLOPs, over widths and token counts.

python -m experiments.paper.figure_5 SWEEP.csv --out figure_5.png

The depth is the largest of the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.dense_figures import plot_tradeoff
from adaperceiver_jax.evaluate.dense_table import DensePoint
from experiments.paper.command import dense


def draw(points: list[DensePoint], metric: str, path: Path, title: str) -> None:
    plot_tradeoff(points, metric, "width", path, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    dense(__doc__, "figure_5.png", ("rmse", "eigen_rmse"), draw, arguments)


if __name__ == "__main__":
    main()
