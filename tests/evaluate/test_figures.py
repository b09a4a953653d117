"""Figures of sweeps: which points they hold, what they refuse."""

import dataclasses

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from adaperceiver_jax.evaluate import figures
from adaperceiver_jax.evaluate.points import DensePoint, Point

POINTS = [
    Point(t, w, l, 0.1 * l + 0.01 * w + 0.001 * t, t * w * l, latency_ms=t + w + l, batch=b)
    for t, b in ((4, 8), (2, 8), (8, 8))
    for w in (3, 6)
    for l in (1, 2)
]
DENSE = [
    DensePoint(p.num_tokens, p.width, p.depth, p.tokens_are, "network", "block", False,
               {"rmse": 1 - p.accuracy}, p.gflops, 1.0)
    for p in POINTS
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were finished."""
    kept, finish = [], figures.finish
    monkeypatch.setattr(figures, "finish", lambda *a, **k: kept.append(a[0]) or finish(*a, **k))
    return kept


def lines(axes):
    return {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}


def test_a_tradeoff_has_a_line_per_token_count_and_the_front_of_what_is_better(drawn, tmp_path):
    figures.plot_tradeoff(POINTS, "width", "latency_ms", "accuracy", tmp_path / "new" / "a.png")
    figures.plot_tradeoff(DENSE, "depth", "encoder_gflops", "rmse", tmp_path / "b.png")
    (accuracy,), (error,) = (figure.axes for figure in drawn)
    assert accuracy.get_xlabel() == "latency of a batch of 8 (ms)"
    assert set(lines(accuracy)) == {"Pareto front", "2 tokens", "4 tokens", "8 tokens"}
    np.testing.assert_allclose(lines(accuracy)["4 tokens"].get_data(), [[9, 12], [23.4, 26.4]])
    assert error.get_ylabel() == "RMSE (m), mean over the images"
    np.testing.assert_allclose(lines(error)["2 tokens"].get_data(), [[12, 24], [0.838, 0.738]])
    for axes, sign in ((accuracy, 1), (error, -1)):
        front = sign * np.diff(lines(axes)["Pareto front"].get_ydata())
        assert front.size
        assert (front > 0).all()
    for name in ("new/a.png", "b.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("points", "by", "x", "message"),
    [
        (POINTS, "width", "params", "x='params': must be one of gflops, latency_ms$"),
        (DENSE, "width", "gflops", "x='gflops': must be one of encoder_gflops$"),
        (figures.along(POINTS, "width"), "depth", "gflops", "depth: the sweep holds only 2;"),
        ([*POINTS, Point(16, 6, 2, 0.9, 9.0, latency_ms=1.0, batch=1)], "width", "latency_ms",
         r"batch: the sweep holds \[1, 8\]; must be one size"),
        ([dataclasses.replace(p, latency_ms=None) for p in POINTS], "width", "latency_ms",
         "latency_ms: not measured at 2 tokens, width 3, depth 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(points, by, x, message, tmp_path):
    y = "rmse" if points is DENSE else "accuracy"
    with pytest.raises(ValueError, match=message):
        figures.plot_tradeoff(points, by, x, y, tmp_path / "a.png")


def test_all_sub_networks_and_one_trained_alone_share_a_picture(tmp_path, drawn):
    """And leave the caller's pyplot alone: a notebook's backend would show what is drawn."""
    before = plt.get_fignums(), matplotlib.get_backend()
    figures.plot_accuracy_flops(POINTS, tmp_path / "a.png")
    figures.plot_accuracy_flops(POINTS, tmp_path / "b.png", "title", Point(8, 6, 2, 0.3, 20.0))
    plain, more = ([c.get_label() for c in f.axes[0].collections] for f in drawn)
    assert plain.count("width 6") == plain.count("4 tokens") == 1
    assert more == [*plain, "trained for this budget alone"]
    figures.plot_tokens(POINTS, "gflops", "accuracy", tmp_path / "c.png")
    assert (plt.get_fignums(), matplotlib.get_backend()) == before


def test_a_panel_for_each_axis_with_the_others_at_three_places(tmp_path, drawn):
    some = [dataclasses.replace(p, tokens_are="interpolated") if p.num_tokens == 4 else p
            for p in POINTS]  # fmt: skip
    figures.plot_axes(some, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000
    tokens, width, depth = drawn[0].axes
    assert set(lines(tokens)) == {"width 6, depth 2", "width 3, depth 1"}  # halfway of two: first
    x, y = lines(tokens)["width 6, depth 2"].get_data()
    np.testing.assert_allclose(x, [2, 4, 8])
    np.testing.assert_allclose(y, [100 * (0.2 + 0.06 + 0.001 * t) for t in (2, 4, 8)])
    hollow = {tuple(line.get_xdata()) for line in tokens.lines if line.get_mfc() == "white"}
    assert hollow == {(4,)}
    assert [axes.get_xlabel() for axes in (tokens, width, depth)] == ["tokens", "width", "depth"]
    with pytest.raises(ValueError, match="points: not every pair of their tokens, widths and"):
        figures.plot_axes(POINTS[:-1], tmp_path / "b.png")
