"""What the figures of sweeps share."""

import numpy as np
import pytest
from PIL import Image

from adaperceiver_jax.evaluate.figures import plot_accuracy_flops, plot_tokens, plot_tradeoff
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
