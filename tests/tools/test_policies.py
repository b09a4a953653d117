"""tools/policies.py: a table like the paper's Table 6, from what the sweep kept."""

import re

import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.sweep import SweepFolder
from adaperceiver_jax.tasks.weights import find_policy
from tests.small_models import TINY, random_params
from tests.tools.conftest import read_csv, write_run
from tests.train import small
from tools import policies as tool
from tools import sweep


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, the outcomes of its sweep, and two policies for it with random weights."""
    root = tmp_path_factory.mktemp("policies")
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, "num_classes": 10}))
    ap.save_pretrained(model, random_params(model, 3), root / "tiny")
    sweep.main([*map(str, options(root)), "--no-latency", "--out", str(root / "sweep.csv")])
    for name, learner, looks_at in (("drawn", "reinforce", "patches"), ("told", "regress", "peek")):
        changes = {"data.image_size": 16, "policy.path": root / "tiny", "policy.learner": learner}
        changes["policy.looks_at"] = looks_at
        write_run(root / name, small.run_config("policy_in1k", changes))
    return root


def options(root):
    return [
        *("--checkpoint", root / "tiny", "--data", "scenes", "--set", "data.validation_count=20"),
        *("--set", "data.train_count=8", "--set", "augment.crop=()", "--batch", "8"),
    ]


def table(place, tmp_path, said, *more):
    out = tmp_path / "policies.csv"
    outcomes = ("--outcomes", place / "sweep.outcomes")
    text = said(tool, *options(place), *outcomes, "--out", out, *more)
    return {row["policy"]: row for row in read_csv(out)}, text


@pytest.mark.nightly(group="tools")
def test_the_table_has_every_kind_of_policy(place, tmp_path, said):
    figure = tmp_path / "figures" / "policies.png"
    learned = ("--learned", place / "drawn", "--learned", place / "told")
    timed = ("--tokens", "2,16", "--timed", "10", "--repeats", "1", "--figure", figure)
    rows, text = table(place, tmp_path, said, *learned, *timed, "--taus", "0.5")
    names = list(rows)
    given = [f"Baseline (t={t})" for t in (2, 16)] + [f"EE (t={t}, tau=0.5)" for t in (2, 16)]
    assert names[:4] == given
    assert {"drawn", "drawn (tau=0.5)", "Optimal", "Optimal (never right: whole)"} <= {*names}
    assert sum(name.startswith("Best fixed (") for name in names) in (1, 2)
    assert sum(name.startswith("told (at ") for name in names) >= 2
    outcomes = SweepFolder(place / "sweep.outcomes").outcomes()
    model, _ = ap.from_pretrained(place / "tiny")
    for t in (2, 16):
        found = [float(rows[f"Baseline (t={t})"][name]) for name in ("accuracy", "gflops")]
        right = outcomes.scores.right[outcomes.index(t, 24, 3)]
        assert found == pytest.approx([right.mean(), ap.flops(model.config, t).total / 1e9])
    assert all(float(row["ms"]) > 0 and row["images"] == "20" for row in rows.values())
    best = max(float(row["accuracy"]) for row in rows.values())
    assert float(rows["Optimal"]["accuracy"]) == best
    choosing = float(rows["drawn"]["choosing_gflops"])
    low, high = (float(rows[f"Baseline (t={t})"]["gflops"]) for t in (2, 16))
    assert low <= float(rows["drawn"]["gflops"]) - choosing < float(rows["drawn"]["gflops"])
    assert float(rows["drawn"]["gflops"]) - choosing <= high
    assert all(f"| {name} |" in text for name in rows)
    assert Image.open(figure).size[0] > 1000


@pytest.mark.slow
def test_without_times(place, tmp_path, said):
    rows, text = table(place, tmp_path, said, "--repeats", "0", "--tokens", "4", "--taus", "0.9")
    assert list(rows)[:2] == ["Baseline (t=4)", "EE (t=4, tau=0.9)"]
    assert {row["ms"] for row in rows.values()} == {""}
    assert "| - |" in text


@pytest.mark.slow
def test_a_learned_policy_comes_back_as_it_was_learned(place):
    model, params = ap.from_pretrained(place / "tiny")
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    drawn, told = (find_policy(place / name, model, params) for name in ("drawn", "told"))
    assert drawn.peek is None
    assert (told.peek.num_tokens, told.peek.depth) == (2, 1)
    assert drawn.gflops > told.gflops > 0
    assert drawn.scores(images).shape == (4, 4)
    with pytest.raises(ValueError, match="has one trade-off"):
        drawn.at(1.0, [images])
    assert told.at(1.0, [images]).price == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--taus", "1.5"), r"tau=1\.5: must be a probability"),
        (("--taus", "x"), "must read like 0.9,0.95"),
        (("--set", "data.validation_count=12"), "of another"),
        (("--learned", "{place}/tiny"), "tiny: not a run's folder"),
        (("--learned", "{place}/told", "--targets", "1e-9"), "--targets=1e-09: the cheapest"),
        (("--learned", "{place}/told", "--learned", "{place}/told"), "another run is named told"),
        (("--learned", "{place}/EE"), "EE: named like the table's own rows; rename the folder"),
        (("--dtype", "bfloat16"), "of another dtype"),
        (("--tokens", "3"), r"Baseline \(t=3\): num_tokens=3: these outcomes hold"),
        (("--outcomes", "{place}/tiny"), "holds no sweep"),
        (("--timed", "0"), "--timed=0"),
    ],
)
def test_what_cannot_be_is_refused(place, refused, more, message):
    more = [text.format(place=place) for text in more]
    text = refused(tool, *options(place), "--outcomes", place / "sweep.outcomes", *more)
    assert re.search(message, text), text
