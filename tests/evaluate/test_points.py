"""A sweep's CSV gives back its points, and the plan takes the best within a budget."""

import dataclasses

import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import (
    DensePoint,
    Point,
    csv_text,
    frontier,
    kind_of_tokens,
    pareto,
    read_dense_points,
    read_points,
)

MEASURED = dict(latency_ms=8.0, memory_mib=3.5, batch=64, device="a cpu")
POINTS = [
    Point(8, 24, 1, 0.5, 2.0, top5=0.75, **MEASURED),
    Point(4, 24, 1, 0.4, 1.0, top5=0.625, **{**MEASURED, "latency_ms": 9.0}),
    Point(6, 24, 2, 0.5, 3.0, top5=0.875, tokens_are="interpolated", **MEASURED),
    Point(16, 24, 3, 0.625, 4.0, top5=1.0, **{**MEASURED, "latency_ms": 20.0}),
]
DENSE = [
    DensePoint(4, 8, 1, "trained", "network", "block", False, {"miou": 0.25, "loss": 2.5}, 1.5, 2),
    DensePoint(None, None, None, "whole", "own", "", True, {"miou": 0.5}, 1.25, 3.0),
]
DENSE_CSV = """\
num_tokens,width,depth,tokens_are,resolution,mask,flip,miou,loss,encoder_gflops,head_gflops
4,8,1,trained,network,block,False,0.25,2.5,1.5,2
,,,whole,own,,True,0.5,,1.25,3
"""


@pytest.fixture
def file(tmp_path):
    """text -> a CSV file."""
    return lambda text: (tmp_path / "sweep.csv").write_text(text) and tmp_path / "sweep.csv"


def test_a_csv_gives_back_its_points(file):
    bare = Point(8, 8, 1, 1 / 3, 0.0043168)
    few = file("depth,num_tokens,width,accuracy,gflops,more\n1,8,16,0.5,2,x\n")
    assert read_points(few) == [Point(8, 16, 1, 0.5, 2.0)]
    *found, last = read_points(file(csv_text([*POINTS, bare])))
    assert found == POINTS
    assert (last.latency_ms, last.top5, last.batch, last.device) == (None, None, None, "")
    assert last.accuracy == pytest.approx(1 / 3, abs=1e-7)
    assert found[0].throughput == 8000.0
    assert last.throughput is None
    assert found[0].sub_network == dict(num_tokens=8, width=24, depth=1)
    assert csv_text(DENSE) == DENSE_CSV
    assert read_dense_points(file(DENSE_CSV)) == DENSE


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_points, "a,b\n1,2\n", "has no column num_tokens; must be a sweep's CSV"),
        (read_points, csv_text(POINTS).splitlines()[0] + "\n", "holds no sub-network"),
        (read_points, csv_text(POINTS) + "8,8\n", "line 6: depth='': must be a number"),
        (read_dense_points, csv_text(POINTS), "no column resolution; must be a CSV of tools/eval"),
        (read_dense_points, DENSE_CSV.replace("0.25", "high"), "line 2: miou='high': must be a"),
    ],
)
def test_what_is_no_sweep_is_refused(file, read, text, message):
    with pytest.raises(ValueError, match=message):
        read(file(text))


def test_the_frontier_holds_what_no_cheaper_one_beats():
    assert [p.gflops for p in frontier(POINTS)] == [1.0, 2.0, 4.0]
    assert [p.num_tokens for p in frontier(POINTS, "latency_ms")] == [8, 16]
    costs, values = [3, 1, 2, 4, 4], [0.5, 0.3, 0.2, 0.5, 0.7]
    assert pareto(costs, values) == [1, 0, 4]
    assert pareto(costs, [-v for v in values], lower=True) == [1, 0, 4]
    assert pareto(costs, values, lower=True) == [1, 2]


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        (dict(max_gflops=1.0), 4),
        (dict(max_gflops=3.5), 8),  # of two as accurate, the cheaper
        (dict(max_gflops=100), 16),
        (dict(max_ms=8.5), 8),
        (dict(max_gflops=1.5, max_ms=30), 4),
    ],
)
def test_the_plan_takes_the_best_within_the_budget(file, limits, tokens):
    path = file(csv_text(POINTS))
    assert ap.plan(path, **limits).num_tokens == ap.plan(POINTS, **limits).num_tokens == tokens


@pytest.mark.parametrize(
    ("latency", "limits", "message"),
    [
        (9.0, dict(max_gflops=0.5), r"max_gflops=0\.5 \(the cheapest takes 1\): no sub-"),
        (9.0, dict(max_gflops=9, max_ms=2), r"takes 1\) and max_ms=2 \(the cheapest takes 9\): no"),
        (9.0, {}, "give at least one"),
        (None, dict(max_ms=3), "this sweep measured no time"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused(latency, limits, message):
    with pytest.raises(ValueError, match=message):
        ap.plan([dataclasses.replace(p, latency_ms=latency) for p in POINTS], **limits)


def test_token_counts_are_told_apart():
    kinds = [kind_of_tokens(t, (4, 8, 16)) for t in (2, 4, 6, 16, 17)]
    assert kinds == ["extrapolated", "trained", "interpolated", "trained", "extrapolated"]
