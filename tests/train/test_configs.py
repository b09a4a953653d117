"""Every config trains two steps at home."""

import numpy as np
import pytest

from tests.train.small import ROOT, config_dict, rows, run

NAMES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("common", "dense", "__init__")
)
EACH_TASK = {"stage3_width", "scratch", "ade20k", "nyuv2", "policy_in1k"}
QUICK = [pytest.mark.quick, pytest.mark.slow]
NIGHTLY = [pytest.mark.nightly(group="configs")]


def test_there_are_configs():
    assert {"stage1_tokens", "stage2_depth", "stage3_width", "features", "scratch"} <= set(NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=QUICK if name in EACH_TASK else NIGHTLY) for name in NAMES]
)
def test_two_steps(tmp_path, name):
    changes = {
        "length": "2 steps",
        "log_every": 1,
        "evaluation.every": "2 steps",
        "optimizer.precondition_frequency": 1,
        "optimizer.start_preconditioning_step": 1,
    }
    result = run(tmp_path, name, changes)
    assert (result.step, result.finished) == (2, True)
    assert np.isfinite(list(result.metrics.values())).all()
    first, second = rows(tmp_path)
    config = config_dict(name, changes)
    parts = {"teacher": {"label"}, "depth": {"sig", "grad"}, "policy": {"policy", "entropy"}}
    names = parts.get(config.task, {"token"})
    if config.task in ("distill", "classify"):
        names |= {"depth"} if config.loss.depths else set()
        names |= {"feature_token"} if config.loss.features else set()
    assert names <= set(first)
    assert ("depth" in first) == ("depth" in names)
    assert first["update_norm"] > 0
    assert second["loss"] != first["loss"]
    assert (tmp_path / "model" / "model.safetensors").exists()
    told = (tmp_path / "shardings.txt").read_text()
    assert ("constants/" in told) == (config.task in ("distill", "policy"))
