"""A sweep's CSV gives back its points, and the plan takes the best within a budget."""

import dataclasses

import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import Point, csv_text, frontier, kind_of_tokens, read_points

MEASURED = dict(latency_ms=8.0, memory_mib=3.5, batch=64, device="a cpu")
POINTS = [
    Point(8, 24, 1, 0.5, 2.0, top5=0.75, **MEASURED),
    Point(4, 24, 1, 0.4, 1.0, top5=0.625, **{**MEASURED, "latency_ms": 9.0}),
    Point(6, 24, 2, 0.5, 3.0, top5=0.875, tokens_are="interpolated", **MEASURED),
    Point(16, 24, 3, 0.625, 4.0, top5=1.0, **{**MEASURED, "latency_ms": 20.0}),
]


def test_a_csv_gives_back_its_points(tmp_path):
    path = tmp_path / "sweep.csv"
    bare = Point(8, 8, 1, 1 / 3, 0.0043168)
    path.write_text(csv_text([*POINTS, bare]))
    *found, last = read_points(path)
    assert found == POINTS
    assert (last.latency_ms, last.top5, last.batch, last.device) == (None, None, None, "")
    assert last.accuracy == pytest.approx(1 / 3, abs=1e-7)
    assert found[0].throughput == 8000.0
    assert last.throughput is None
    assert found[0].sub_network == dict(num_tokens=8, width=24, depth=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column num_tokens; must be a sweep's CSV"),
        ("num_tokens,width,depth,accuracy,gflops\n", "holds no sub-network"),
        ("num_tokens,width,depth,accuracy,gflops\n8,8,x,0.5,1\n", "line 2: depth='x': must be a"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_points(path)


def test_the_frontier_holds_what_no_cheaper_one_beats():
    assert [p.gflops for p in frontier(POINTS)] == [1.0, 2.0, 4.0]
    assert [p.num_tokens for p in frontier(POINTS, "latency_ms")] == [8, 16]


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        (dict(max_gflops=1.0), 4),
        (dict(max_gflops=3.5), 8),  # of two as accurate, the cheaper
        (dict(max_gflops=100), 16),
        (dict(max_ms=8.5), 8),
        (dict(max_ms=30), 16),
        (dict(max_gflops=1.5, max_ms=30), 4),
    ],
)
def test_the_plan_takes_the_best_within_the_budget(tmp_path, limits, tokens):
    path = tmp_path / "sweep.csv"
    path.write_text(csv_text(POINTS))
    assert ap.plan(path, **limits).num_tokens == ap.plan(POINTS, **limits).num_tokens == tokens


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(ValueError, match=r"max_gflops=0\.5 \(the cheapest takes 1\): no sub-"):
        ap.plan(POINTS, max_gflops=0.5)
    with pytest.raises(ValueError, match="give at least one"):
        ap.plan(POINTS)
    bare = [dataclasses.replace(p, latency_ms=None) for p in POINTS]
    with pytest.raises(ValueError, match="this sweep measured no time"):
        ap.plan(bare, max_ms=3)


def test_token_counts_are_told_apart():
    kinds = [kind_of_tokens(t, (4, 8, 16)) for t in (2, 4, 6, 16, 17)]
    assert kinds == ["extrapolated", "trained", "interpolated", "trained", "extrapolated"]
