"""The worked examples of docs/contributing.md, put where that page says and used as it says."""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.outcomes import join, make_grid
from adaperceiver_jax.evaluate.sweep import collect
from adaperceiver_jax.models import dense
from adaperceiver_jax.policies.budgets import EarlyExit
from adaperceiver_jax.policies.compare import compare
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config
from configs import ade20k
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "contributing.md"
SHORT = "length=2 steps,evaluation.every=100%,batch_size=8,data.validation_count=8"


def example(title: str) -> list[tuple[str, str, bool]]:
    """(file, code, whether it goes to the end of a file that is there) of a section's blocks."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    found = []
    for prose, code in re.findall(r"(.*?)```python\n(.*?)```", section, re.S):
        files = re.findall(r"`((?:adaperceiver_jax|configs)/[\w/]+\.py)`", prose)
        name = files[-1] if files else ""
        end = re.findall(r"at the end of\s+`([\w/.]+)`", prose, re.I)
        found.append((name, code, end == [name]))
    return found


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository that an example was put into, and its `main.py`."""
    copy = tmp_path / "tree"
    for name in ("adaperceiver_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", copy / "main.py")
    env = {**environment(), "PYTHONPATH": str(copy)}

    def put(title: str):
        for name, code, end in example(title):
            path = copy / name
            assert path.exists() == end, name
            path.write_text(f"{path.read_text()}\n\n{code}" if end else code)

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)

    return types.SimpleNamespace(put=put, python=python, path=copy)


@pytest.mark.nightly(group="contributing")
def test_the_data_set_is_trained_on(tree):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("validation", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 40, 36, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(tree.path / "flowers.npz", **arrays)
    command = (
        f"--config=configs/scratch.py:runlocal,{SHORT},data.train_count=0",
        "--config.data.source=npz:flowers.npz",
        f"--workdir={tree.path / 'run'}",
    )
    assert "must be 'scenes', or one of 'tfds:...'" in tree.python("main.py", *command).stderr
    tree.put("A data set")
    done = tree.python("main.py", *command)
    assert done.returncode == 0, done.stderr
    assert (tree.path / "run" / "model" / "model.safetensors").exists()
    arrays["train_images"] = arrays["train_images"].astype(np.float32)
    np.savez(tree.path / "flowers.npz", **arrays)
    done = tree.python("main.py", *command[:2], "--workdir=other")
    assert "config.data.source='npz:flowers.npz': train_images: must be images" in done.stderr


@pytest.mark.nightly(group="contributing")
def test_the_head_is_trained_saved_and_counted(tree):
    tree.put("A head")
    run = tree.path / "run"
    config = f"--config=configs/ade20k.py:runlocal,{SHORT},dense.head=mlp"
    done = tree.python("main.py", config, f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "model" / "config.json").read_text())["head"] == "mlp"
    code = f"""
import dataclasses, adaperceiver_jax as ap
model, params = ap.from_pretrained({str(run / "model")!r})
features = model.config.features
assert params["head"]["hidden"]["kernel"].shape == (1, 1, features, features)
linear = dataclasses.replace(model.config, head="linear")
assert ap.flops(model.config).head - ap.flops(linear).head == 2 * 64 * features**2
"""
    done = tree.python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_head_whose_flops_are_not_known_is_not_counted_as_another(monkeypatch):
    monkeypatch.setitem(dense.SEGMENTATION_HEADS, "odd", dense.SEGMENTATION_HEADS["linear"])
    config = from_config(RunConfig, ade20k.get_config("runlocal").to_dict())
    odd = ap.SegmentationConfig(backbone=config.model, num_classes=3, head="odd")
    with pytest.raises(ValueError, match=r"head='odd': its FLOPs are not known; add them to HEAD"):
        ap.flops(odd)


@pytest.mark.nightly(group="contributing")
def test_the_policy_is_compared_and_served():
    model, params = ap.from_pretrained(ROOT / "experiments/colab/weights/classifier")
    names: dict = {"__name__": "example"}
    ((_, code, _),) = example("A policy")
    exec(code, names)
    images = np.random.default_rng(0).standard_normal((6, 32, 32, 3), np.float32)
    images[:3] *= 0.1
    policy = names["ByContrast"](model.config, few=2, many=8, limit=0.5)
    assert policy(images).num_tokens.tolist() == [8, 8, 8, 2, 2, 2]
    grid = make_grid(model.config, tokens=(2, 8))
    outcomes = join(list(collect(model, params, [(images, np.zeros(6, np.int32))], grid)))
    rows = compare(model, {"mine": policy, "left": EarlyExit(0.0, policy)}, [images], outcomes)
    assert rows[1].gflops < rows[0].gflops
    served = ap.policies.Server(model, params, policy, batch_size=3)(images)
    for i, t in ((0, 8), (5, 2)):
        alone = model.apply({"params": params}, images[i : i + 1], num_tokens=t)
        np.testing.assert_allclose(served.logits[i], alone.logits[0], rtol=2e-4, atol=2e-4)


@pytest.mark.nightly(group="contributing")
def test_the_stage_is_a_config_and_trains(tree):
    tree.put("A stage")
    config = "--config=configs/stage4_more_tokens.py"
    workdir = f"--workdir={tree.path / 'run'}"
    done = tree.python("main.py", f"{config}:runlocal,{SHORT}", workdir)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tree.path / "run" / "model" / "config.json").read_text())
    assert trained["max_latent_tokens"] == 32
