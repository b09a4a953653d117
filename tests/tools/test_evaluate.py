"""tools/evaluate.py: a run's sub-networks over its validation images."""

import pytest

from tests.tools.conftest import read_csv, write_run
from tests.train import small
from tools import evaluate as tool

pytestmark = pytest.mark.nightly(group="tools")  # it trains a run first


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, and what the one that was trained reported."""
    root = tmp_path_factory.mktemp("runs")
    changes = {**small.PLAIN, "length": "1 steps", "evaluation.every": "1 steps"}
    for name in ("nyuv2", "vit_nyuv2", "scratch"):
        write_run(root / name, small.run_config(name, changes))
    return root, small.run(root / "ade20k", "ade20k", changes).metrics


def test_a_line_a_sub_network_and_figures(runs, tmp_path, said):
    runs, want = runs
    options = ["--tokens", "2-4", "--widths", "6,12", "--depths", "1,2", "--own-size"]
    out = tmp_path / "results" / "ade.csv"
    text = said(tool, runs / "ade20k", *options, "--out", out, "--figures", tmp_path / "figures")
    found = read_csv(out)
    assert len(found) == 3 * 2 * 2 * 2
    assert text.count("network |") == text.count("own |") == len(found) / 2
    names = ("num_tokens", "width", "depth", "resolution")
    largest = ["4", "12", "2", "network"]
    (whole,) = (row for row in found if [row[name] for name in names] == largest)
    for name in ("miou", "mean_accuracy", "accuracy"):
        # the sweep's program sums in another order, which may turn a pixel
        assert float(whole[name]) == pytest.approx(want[f"t4_w12_l2/{name}"], abs=5e-3)
    assert float(whole["loss"]) == pytest.approx(want["t4_w12_l2/loss"], rel=1e-4)
    kinds = {row["num_tokens"]: row["tokens_are"] for row in found}
    assert kinds == {"2": "trained", "3": "interpolated", "4": "trained"}
    assert 0 < float(whole["encoder_gflops"]) != float(whole["head_gflops"]) > 0
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"segment_{axis}.png" for axis in ("depth", "tokens", "width")}


def test_depth_and_the_eigen_crop(runs, tmp_path, said):
    run = runs[0] / "nyuv2"
    options = ["--set", "dense.eigen_crop=True", "--flip"]
    said(tool, run, *options, "--out", tmp_path / "a.csv")
    found = read_csv(tmp_path / "a.csv")
    assert len(found) == 4  # two token counts, two widths
    assert {row["flip"] for row in found} == {"True"}
    assert len({row["eigen_rmse"] for row in found}) == 4
    assert "rmse" not in found[0]


def test_a_vit_is_one_line(runs, tmp_path, said):
    files = ("--out", tmp_path / "a.csv", "--figures", tmp_path / "f")
    said(tool, runs[0] / "vit_nyuv2", *files)
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["num_tokens"], row["tokens_are"]) == ("", "whole")
    assert float(row["rmse"]) > 0
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scratch", (), "its task is 'classify'; must be segment or depth"),
        ("ade20k", ("--widths", "13"), "width=13: must be in 1..12"),
        ("ade20k", ("--tokens", "0"), "num_tokens=0: must be at least 1"),
        ("ade20k", ("--batch", "0"), "--batch=0: must be a multiple of the"),
        ("ade20k", ("--set", "dense.eigen"), "--set dense.eigen: must read like"),
        ("nyuv2", ("--set", "data.max_depth=5"), "another model of the run's (max_depth=5.0)"),
        ("ade20k", ("--set", "model.depth=1"), "only model.block_mask and model.rope_scale may"),
        ("ade20k", ("--set", "task=depth"), "--set task=depth: the run's is 'segment'"),
        ("vit_nyuv2", ("--tokens", "4"), "the backbone is a ViT, which has no sub-networks"),
        ("nothing", (), "not a run's folder"),
    ],
)
def test_refusals(runs, refused, name, options, message):
    assert message in refused(tool, runs[0] / name, *options)


def test_without_the_mask_and_with_too_few_points_for_a_figure(runs, tmp_path, said):
    options = ["--tokens", "3", "--widths", "12", "--depths", "2", "--set", "model.block_mask=none"]
    run = runs[0] / "ade20k"
    said(tool, run, *options, "--out", tmp_path / "a.csv", "--figures", tmp_path / "f")
    found = read_csv(tmp_path / "a.csv")
    assert {(row["tokens_are"], row["mask"]) for row in found} == {("interpolated", "none")}
    assert not (tmp_path / "f").exists()
