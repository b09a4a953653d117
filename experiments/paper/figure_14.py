"""Figure 14: RMSE on NYUv2 at token counts that were trained, lie between those, or beyond.

python -m experiments.paper.figure_14 SWEEP.csv --out figure_14.png

Width and depth are the largest of the sweep. Where the paper breaks its x axis, ours is logarithmic
as soon as costs differ by more than 5 x.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaperceiver_jax.evaluate.dense_figures import plot_tokens
from experiments.paper.command import dense


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    dense(__doc__, "figure_14.png", ("rmse", "eigen_rmse"), plot_tokens, arguments)


if __name__ == "__main__":
    main()
