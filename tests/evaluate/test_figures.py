"""What the figures of sweeps share."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from adaperceiver_jax.evaluate import figures
from adaperceiver_jax.evaluate.figures import (
    plot_accuracy_flops,
    plot_axes,
    plot_tokens,
    plot_tradeoff,
)
from adaperceiver_jax.evaluate.plotting import check_values, pareto, tradeoff, whole
from adaperceiver_jax.evaluate.points import Point, frontier

POINTS = [
    Point(t, w, l, 0.1 * l + 0.01 * w + 0.001 * t, t * w * l, latency_ms=t + w + l, batch=b)
    for t, b in ((4, 8), (2, 8), (8, 8))
    for w in (3, 6)
    for l in (1, 2)
]


def test_the_pareto_front_holds_what_no_cheaper_point_beats():
    costs, values = [3, 1, 2, 4, 4], [0.5, 0.3, 0.2, 0.5, 0.7]
    assert pareto(costs, values) == [1, 0, 4]
    assert pareto(costs, [-v for v in values], lower=True) == [1, 0, 4]
    assert pareto(costs, values, lower=True) == [1, 2]


def test_the_pareto_front_is_the_frontier_of_a_sweep():
    for cost in ("gflops", "latency_ms"):
        costs, values = [getattr(p, cost) for p in POINTS], [p.accuracy for p in POINTS]
        assert [POINTS[i] for i in pareto(costs, values)] == frontier(POINTS, cost)


def test_a_tradeoff_keeps_the_other_axis_at_its_largest():
    assert {(p.width, p.depth) for p in tradeoff(POINTS, "width")} == {(3, 2), (6, 2)}
    assert {(p.width, p.depth) for p in tradeoff(POINTS, "depth")} == {(6, 1), (6, 2)}
    assert [(p.num_tokens, p.width, p.depth) for p in whole(POINTS)] == [
        (2, 6, 2), (4, 6, 2), (8, 6, 2),
    ]  # fmt: skip


def test_one_value_is_no_comparison():
    check_values(POINTS, "width")
    with pytest.raises(ValueError, match="depth: the sweep holds only 2; sweep several"):
        check_values(tradeoff(POINTS, "width"), "depth")


def test_an_axis_that_no_point_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="x='params': must be one of gflops, latency_ms"):
        plot_tokens(POINTS, "params", tmp_path / "a.png")


def test_latencies_of_two_batch_sizes_share_no_axis(tmp_path):
    more = [*POINTS, Point(16, 6, 2, 0.9, 9.0, latency_ms=1.0, batch=1)]
    with pytest.raises(ValueError, match=r"batch: the sweep holds \[1, 8\]; must be one size"):
        plot_tradeoff(more, "width", "latency_ms", tmp_path / "a.png")
    plot_tradeoff(more, "width", "gflops", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_all_sub_networks_and_one_trained_alone_share_a_picture(tmp_path):
    plain, more = tmp_path / "new" / "a.png", tmp_path / "b.png"
    plot_accuracy_flops(POINTS, plain)
    plot_accuracy_flops(POINTS, more, "title", Point(8, 6, 2, 0.3, 20.0))
    crimson = [
        (np.abs(np.asarray(Image.open(p).convert("RGB"), int) - (220, 20, 60)).max(-1) < 3).sum()
        for p in (plain, more)
    ]
    assert crimson[0] == 0
    assert crimson[1] > 50  # the cross


def test_a_panel_for_each_axis_with_the_others_at_three_places(tmp_path, monkeypatch):
    kept = []
    finish = figures.finish
    monkeypatch.setattr(figures, "finish", lambda *found, **more: kept.append(found[0]))
    some = [dataclasses.replace(p, tokens_are="interpolated") if p.num_tokens == 4 else p
            for p in POINTS]  # fmt: skip
    plot_axes(some, tmp_path / "a.png")
    tokens, width, depth = kept[0].axes
    lines = {line.get_label(): line for line in tokens.lines if line.get_label()[0] != "_"}
    assert set(lines) == {"width 6, depth 2", "width 3, depth 1"}  # halfway of two is the first
    x, y = lines["width 6, depth 2"].get_data()
    np.testing.assert_allclose(x, [2, 4, 8])
    np.testing.assert_allclose(y, [100 * (0.2 + 0.06 + 0.001 * t) for t in (2, 4, 8)])
    hollow = {tuple(line.get_xdata()) for line in tokens.lines if line.get_mfc() == "white"}
    assert hollow == {(4,)}
    assert [axes.get_xlabel() for axes in (tokens, width, depth)] == ["tokens", "width", "depth"]
    monkeypatch.setattr(figures, "finish", finish)
    plot_axes(some, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000


def test_axes_of_half_a_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match="points: not every pair of their tokens, widths and"):
        plot_axes(POINTS[:-1], tmp_path / "a.png")


def test_figures_leave_the_callers_pyplot_alone(tmp_path):
    """As in a notebook, whose backend shows what is drawn."""
    code = (
        "import matplotlib; matplotlib.use('svg')\n"
        "from pathlib import Path\n"
        "from adaperceiver_jax.evaluate.figures import plot_tokens\n"
        "from adaperceiver_jax.evaluate.points import Point\n"
        "points = [Point(t, 1, 1, 0.1, t) for t in (1, 2)]\n"
        f"plot_tokens(points, 'gflops', Path({str(tmp_path)!r}) / 'a.png')\n"
        "import matplotlib.pyplot as plt\n"
        "assert matplotlib.get_backend() == 'svg' and not plt.get_fignums()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
