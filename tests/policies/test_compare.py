"""Policies side by side: mixes of fixed sub-networks, what a row says, table, CSV and picture."""

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.outcomes import make_grid
from adaperceiver_jax.evaluate.sweep import collect
from adaperceiver_jax.models.attention import IMPLEMENTATIONS
from adaperceiver_jax.policies import compare as compared
from adaperceiver_jax.policies import figure
from adaperceiver_jax.policies.budgets import Baseline, Budgets, EarlyExit, Optimal, Policy
from adaperceiver_jax.policies.compare import Mix, Row, compare, csv_text, is_whole, markdown
from tests.small_models import random_images, tiny

RIGHT = np.array(
    [
        [0, 1, 1, 1, 1, 1, 1, 0],  # 6 GFLOPs, 6/8
        [1, 1, 1, 1, 1, 0, 0, 0],  # 2, 5/8
        [1, 0, 0, 0, 0, 0, 0, 0],  # 1, 1/8
        [1, 1, 0, 0, 0, 0, 0, 0],  # 1.5, 2/8: below the line from 1 to 2
        [1, 1, 1, 1, 0, 0, 0, 0],  # 4, 4/8: less than a cheaper one gets
        [0, 1, 1, 1, 1, 1, 1, 0],  # 7, 6/8: no better than at 6
    ],
    bool,
)
MIX = Mix(RIGHT, np.array([6.0, 2.0, 1.0, 1.5, 4.0, 7.0]))


def test_the_most_accurate_mix_that_costs_no_more():
    for mix, gflops, weights in (
        (MIX, 1.0, [0, 0, 1, 0, 0, 0]),
        (MIX, 1.5, [0, 0.5, 0.5, 0, 0, 0]),
        (MIX, 2.0, [0, 1, 0, 0, 0, 0]),
        (MIX, 4.0, [0.5, 0.5, 0, 0, 0, 0]),
        (MIX, 9.0, [1, 0, 0, 0, 0, 0]),
        (Mix(RIGHT[[2, 1, 0]], np.array([2.0, 2.0, 3.0])), 2.0, [0, 1, 0]),  # of equal costs
        (Mix(RIGHT[:1], np.array([6.0])), 7.0, [1]),  # one is its own mix
        (Mix(RIGHT[[2, 4, 1]], np.array([1.0, 4.0, 5.0])), 3.0, [0.5, 0, 0.5]),
    ):
        np.testing.assert_allclose(mix.at(gflops), weights @ mix.right)


def test_gain_is_taken_image_by_image():
    policy = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    gain, error = MIX.gain(policy, 4.0)
    each = [0.5, 0, 0, 0, 0, 0.5, -0.5, 0]  # less half of each of those of 2 and 6 GFLOPs
    assert gain == pytest.approx(np.mean(each))
    assert error == pytest.approx(np.std(each, ddof=1) / np.sqrt(8))
    assert MIX.gain(RIGHT[1], 2.0) == (0.0, 0.0)
    assert MIX.at(0.99) is None
    assert MIX.gain(RIGHT[0], 0.99) == (None, None)
    gain, error = Mix(RIGHT[:, :1], MIX.gflops).gain(np.array([True]), 1.0)
    assert gain == 0
    assert np.isnan(error)  # one image has none


COUNT = 24


@pytest.fixture(scope="module")
def setting():
    model, params, _ = tiny(seed=1)
    images = random_images(model.config, batch=COUNT, seed=5)
    labels = np.random.default_rng(1).integers(0, 5, COUNT)
    found = collect(model, params, [(images, labels)], make_grid(model.config))
    return model, images, *found


class Alternating(Policy):
    """Few tokens and many, in turn."""

    def __init__(self, gflops=0.0):
        self.gflops = gflops

    def choose(self, images, embedded=None):
        tokens = np.where(np.arange(len(images)) % 2, 16, 2)
        whole = np.full_like(tokens, 24), np.full_like(tokens, 3)
        return Budgets(tokens, *whole)


def rows_of(setting, policies):
    model, images, outcomes = setting
    fillers = np.zeros_like(images[:3])
    batches = [images[:16], np.concatenate([images[16:], fillers])]
    found = compare(model, policies, batches, outcomes)
    return {row.policy: row for row in found}


def test_a_policy_is_held_to_baselines_of_its_whole_cost(setting):
    model, _, outcomes = setting
    c = model.config
    costs = np.array([ap.flops(c, t).total / 1e9 for t in (2, 16)])
    right = np.array([outcomes.scores.right[outcomes.index(t, 24, 3)] for t in (2, 16)])
    assert right[0].mean() < right[1].mean(), "the two rows would be held to the same"
    free, dear = Alternating(), Alternating(0.25 * (costs[1] - costs[0]))
    named = {"a": Baseline(c, 2), "b": Baseline(c, 16), "free": free, "dear": dear}
    rows = rows_of(setting, named)
    assert rows["a"].over_baselines is None
    mine = np.where(np.arange(COUNT) % 2, right[1], right[0])
    for name, share in (("free", 0.5), ("dear", 0.75)):
        row, gflops = rows[name], (1 - share) * costs[0] + share * costs[1]
        assert row.gflops == pytest.approx(gflops)
        want = Mix(right, costs).gain(mine, gflops)
        assert (row.over_baselines, row.over_baselines_error) == pytest.approx(want)


def test_a_policy_is_held_to_every_swept_sub_network(setting):
    model, _, outcomes = setting
    c = model.config
    subs = outcomes.grid.sub_networks()
    top = {sub: outcomes.scores.right[outcomes.index(*sub)].mean() for sub in subs}
    cost = {sub: ap.flops(c, *sub).total for sub in subs}
    best = max(subs, key=lambda sub: (top[sub], -cost[sub]))
    rows = rows_of(
        setting, {"best": Baseline(c, *best), "all": Baseline(c), "oracle": Optimal(c, outcomes)}
    )
    assert rows["best"].over_fixed == 0
    assert rows["all"].over_fixed == pytest.approx(top[16, 24, 3] - top[best])
    assert rows["oracle"].over_fixed > 0.1
    assert rows["oracle"].over_baselines is None  # it is cheaper
    assert rows["best"].over_baselines_error is None
    row = rows_of(setting, {"free": Alternating()})["free"]  # no baselines, no gain over them
    assert row.over_baselines is row.over_baselines_error is None
    assert row.over_fixed is not None
    assert is_whole(Baseline(c, 2), c)  # a baseline, whatever its tokens
    for other in (Baseline(c, 2, depth=2), Baseline(c, 2, 12), EarlyExit(0.5, Baseline(c, 2))):
        assert not is_whole(other, c)


def test_what_was_not_measured_is_left_out():
    rows = [
        Row("Baseline (t=2)", 0.5, 1.0, 0.0, 4),
        Row("told", 0.75, 2.0, 0.25, 4, 3.0, 0.125, 0.0123, -0.01, 0.002),
    ]
    assert csv_text(rows).splitlines() == [
        "policy,accuracy,gflops,choosing_gflops,over_baselines,over_baselines_error,over_fixed,"
        "over_fixed_error,ms,images",
        "Baseline (t=2),0.5,1,0,,,,,,4",
        "told,0.75,2,0.25,0.125,0.0123,-0.01,0.002,3,4",
    ]
    assert markdown(rows).splitlines() == [
        "| policy | accuracy (%) | GFLOPs | choosing | over baselines | over any fixed "
        "| ms an image |",
        "|---|---|---|---|---|---|---|",
        "| Baseline (t=2) | 50.00 | 1 | - | - | - | - |",
        "| told | 75.00 | 2 | 0.25 | +12.50 +- 1.23 | -1.00 +- 0.20 | 3 |",
    ]


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_baselines_and_sub_networks_cost_the_same(setting, attention, monkeypatch):
    model, images, outcomes = setting
    model = model.clone(attention=attention)
    mixes = []
    monkeypatch.setattr(compared, "Mix", lambda *found: mixes.append(Mix(*found)) or mixes[-1])
    (row,) = compare(model, {"all": Baseline(model.config)}, [images], outcomes)
    assert len(mixes[0].gflops) == len(outcomes.grid.sub_networks())
    assert row.gflops == mixes[0].gflops.max() == mixes[1].gflops
    assert row.gflops == pytest.approx(ap.flops(model.config, attention=attention).total / 1e9)


FIGURE = [
    Row("Baseline (t=2)", 0.5, 1.0, 0.0, 4),
    Row("Baseline (t=4)", 0.6, 3.0, 0.0, 4),
    Row("EE (t=2, tau=0.9)", 0.5, 0.9, 0.0, 4),
    Row("EE (t=4, tau=0.9)", 0.6, 2.5, 0.0, 4),
    Row("EE (t=2, tau=0.95)", 0.51, 0.95, 0.0, 4),
    Row("EE (t=4, tau=0.95)", 0.61, 2.6, 0.0, 4),
    Row("told (at 1.5)", 0.55, 1.5, 0.1, 4),
    Row("drawn", 0.58, 2.0, 0.1, 4),
    Row("drawn (tau=0.9)", 0.57, 1.9, 0.1, 4),
    Row("Optimal", 0.9, 0.8, 0.0, 4),
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """rows -> the axes of their picture."""
    kept: list = []
    monkeypatch.setattr(figure, "finish", lambda found, path: kept.append(found))
    return lambda rows: figure.plot(rows, tmp_path / "policies.png") or kept.pop().axes


def test_a_line_of_the_picture_is_a_kind_of_policy(drawn):
    (axes,) = drawn(FIGURE[1::2] + FIGURE[::2])
    lines = {line.get_label(): line for line in axes.lines}
    names = {"Baseline", "EE, tau=0.9", "EE, tau=0.95", "told", "drawn", "drawn, tau=0.9"}
    assert set(lines) == names
    assert len({lines[n].get_marker() for n in ("Baseline", "told", "drawn")}) == 3
    x, y = lines["Baseline"].get_data()
    np.testing.assert_allclose(x[:: lines["Baseline"].get_markevery()], [1, 3])
    assert len(x) > 10
    np.testing.assert_allclose(y, 50 + 5 * (x - 1))  # mixes lie on it; the axis is not linear
    assert axes.get_xscale() == "log"
    styles = [lines[n].get_linestyle() for n in ("Baseline", "EE, tau=0.9", "EE, tau=0.95")]
    assert styles == ["-", "--", ":"]
    colours = {n: line.get_color() for n, line in lines.items()}
    assert colours["EE, tau=0.9"] == colours["Baseline"] != colours["told"]
    assert colours["drawn"] == colours["drawn, tau=0.9"] != colours["told"]
    hollow = {n for n, line in lines.items() if line.get_markerfacecolor() == "white"}
    assert hollow == {n for n in lines if "tau" in n}
    assert axes.get_xlabel() == "GFLOPs an image, on average"
    assert [text.get_text() for text in axes.texts] == ["oracle: 90.0% at 0.8 GFLOPs"]
    assert [text.get_text() for text in drawn([FIGURE[-1]])[0].texts] == [axes.texts[0].get_text()]
    with pytest.raises(ValueError, match="no policy to draw"):
        drawn([])


def test_small_costs_are_in_mflops_and_far_ones_leave_the_near_ones_room(drawn):
    small = [Row(r.policy, r.accuracy, r.gflops / 1e3, 0.0, 4) for r in FIGURE]
    far = [Row(f"far (at {i})", 0.3, 0.03, 0.0, 4) for i in range(3)]
    whole, near = drawn([*small, *far])
    assert whole.get_xlabel() == near.get_xlabel() == "MFLOPs an image, on average"
    x, y = whole.lines[0].get_data()
    np.testing.assert_allclose((x[[0, -1]], y[[0, -1]]), [[1, 3], [50, 60]])
    assert all(line.get_label().startswith("_") for line in near.lines)  # one legend
    assert whole.texts[0].get_text() == "oracle: 90.0% at 0.8 MFLOPs"
    low, high = near.get_xlim()
    assert low < 0.9 < 2.5 < high < 3.5
    low, high = near.get_ylim()
    assert 30 < low < 50 < 60 < high < 70


def test_the_kind_of_a_policy_is_its_name_without_its_settings():
    assert figure.kind_of("told (tau=1e-05)") == ("told", "tau=1e-05")
    assert figure.kind_of("told (at 0.0052 + choosing)") == ("told", "")
    assert figure.kind_of("told (v2) (at 5.2, tau=0.9)") == ("told (v2)", "tau=0.9")
    assert figure.kind_of("tau=0.5 run (v2)") == ("tau=0.5 run (v2)", "")
    assert figure.kind_of("Optimal (never right: whole)") == ("Optimal", "")
