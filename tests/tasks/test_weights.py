"""A model and its weights from a run's folder, a folder, or a file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert.files import write_state
from adaperceiver_jax.convert.hub import save_orbax
from adaperceiver_jax.tasks.weights import find_run, find_weights
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.step import TrainState
from tests.convert.test_names import same
from tests.small_models import random_params
from tests.train.small import run_config
from tools import convert as tool


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, model, weights by step): a run's folder with checkpoints of steps 2 and 5."""
    workdir = tmp_path_factory.mktemp("run")
    config = run_config("scratch", {"task": "classify"})
    model = ap.AdaPerceiver(config.model)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    weights = {
        (step, item): random_params(model, seed=step + 10 * (item == "ema"))
        for step in (2, 5)
        for item in ("params", "ema")
    }
    checkpoints = Checkpoints(workdir, CheckpointSettings())
    for step in (2, 5):
        state = TrainState(
            jnp.int32(step), weights[step, "params"], weights[step, "ema"], {"m": jnp.ones(2)}
        )
        checkpoints.save(state, step, {}, None)
    checkpoints.close()
    return workdir, model, weights


@pytest.mark.parametrize(("item", "step"), [("params", None), ("ema", 2)])
def test_a_runs_folder(run, item, step):
    workdir, model, weights = run
    found = find_run(workdir, item, step)
    assert found.model == model
    assert same(found.read(), weights[step or 5, item])
    with pytest.raises(ValueError, match=r"has no checkpoint of step 3, but 2, 5"):
        find_run(workdir, item, step=3).read()


def test_a_run_of_other_sizes_than_its_config_says(run, tmp_path):
    workdir, _, _ = run
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["depth"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="these parameters do not fit"):
        find_run(tmp_path).read()
    config |= {"task": "teacher"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_run(tmp_path).model == ap.ViT(run_config("scratch").vit)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        find_run(tmp_path)


def test_a_run_is_converted(run, tmp_path, capsys):
    workdir, model, weights = run
    tool.main([str(workdir), str(tmp_path / "hub"), "--step", "2"])
    found, params = ap.from_pretrained(tmp_path / "hub")
    assert found == model
    assert same(params, weights[2, "ema"])


def test_every_kind_of_place(tmp_path):
    model = ap.PolicyNetwork(ap.PolicyConfig(embed_dim=8, num_patches=6, token_choices=4))
    params = random_params(model)
    ap.save_pretrained(model, params, tmp_path / "hub")
    save_orbax(model, params, tmp_path / "orbax")
    write_state(tmp_path / "w.safetensors", ap.params_to_torch(model, params))
    for place in ("hub", "orbax", "w.safetensors"):
        found = find_weights(tmp_path / place)
        assert found.model == model
        assert same(jax.tree.map(jnp.asarray, found.read()), params)
    with pytest.raises(ValueError, match="only for a file of weights"):
        find_weights(tmp_path / "hub", model=tmp_path / "orbax")
