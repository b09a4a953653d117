"""Figure 10: accuracy at token counts that were trained, lie between those, or beyond.

python -m experiments.paper.figure_10 SWEEP.csv --out figure_10.png

Width and depth are the largest of the sweep. Where the paper breaks its x axis, ours is logarithmic
as soon as costs differ by more than 5 x.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaperceiver_jax.evaluate.figures import plot_tokens
from experiments.paper.command import classification


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    classification(__doc__, "figure_10.png", plot_tokens, "gflops", arguments)


if __name__ == "__main__":
    main()
