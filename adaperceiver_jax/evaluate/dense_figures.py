"""Pictures of a dense sweep: what tokens, widths and depths cost and give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.dense_table import DensePoint
from adaperceiver_jax.evaluate.plotting import (
    draw_tokens,
    draw_tradeoff,
    finish,
    start,
    tradeoff,
)

__all__ = ["plot_tokens", "plot_tradeoff", "tradeoff"]

TITLES = {
    "miou": "mIoU (%)",
    "rmse": "RMSE (m), mean over the images",
    "rmse_pixels": "RMSE (m), over all pixels",
    "eigen_rmse": "RMSE (m), Eigen's crop, mean over the images",
}
COST = "GFLOPs of the encoder, an image"


def plot_tradeoff(
    points: Sequence[DensePoint], metric: str, by: str, path: Path, title: str = ""
) -> None:
    """A metric against the encoder's GFLOPs: colour is tokens, mark `by`, 'width' or 'depth'.

    Figures 4 and 5 (width) and 11 and 13 (depth) of the paper, of `tradeoff`'s points.
    """
    figure, (axes,) = start(COST, TITLES.get(metric, metric), title)
    draw_tradeoff(axes, points, by, _cost, lambda p: _value(p, metric), metric != "miou")
    finish(figure, path)


def plot_tokens(points: Sequence[DensePoint], metric: str, path: Path, title: str = "") -> None:
    """A metric against the encoder's GFLOPs of every token count, trained or not.

    Figures 12 and 14 of the paper.
    """
    figure, (axes,) = start(COST, TITLES.get(metric, metric), title)
    draw_tokens(axes, points, _cost, lambda p: _value(p, metric), metric != "miou")
    finish(figure, path)


def _cost(point: DensePoint) -> float:
    return point.encoder_gflops


def _value(point: DensePoint, metric: str) -> float:
    """mIoU in percent; every other metric is an error, the lower the better."""
    value = point.scores[metric]
    return 100 * value if metric == "miou" else value
