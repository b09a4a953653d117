"""Sources for the tools, and what they say when they refuse."""

import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.tasks.make import make_model
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.step import TrainState
from tests.convert.test_names import MODELS
from tests.small_models import random_params


class Sources:
    """sources / "vit" is that of MODELS as a hub folder, saved when it is first asked for."""

    def __init__(self, root):
        self.root = root

    def __truediv__(self, name):
        folder = self.root / name
        if name in MODELS and not folder.exists():
            ap.save_pretrained(MODELS[name], random_params(MODELS[name]), folder)
        return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return Sources(tmp_path_factory.mktemp("sources"))


def write_run(folder, config):
    """What a run leaves, with random weights instead of trained ones."""
    model = make_model(config)
    params, ema = (random_params(model, seed) for seed in range(2))
    ap.save_pretrained(model, ema, folder / "model")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    checkpoints = Checkpoints(folder, CheckpointSettings())
    checkpoints.save(TrainState(jnp.int32(1), params, ema, {"m": jnp.ones(2)}), 1, {}, None)
    checkpoints.close()
    return folder


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(tmp_path):
    """Three files of smooth images of different sizes."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(paths):
        few = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
        size = 48, 24 + 6 * seed
        Image.fromarray(few).resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


@pytest.fixture
def said(capsys):
    """(tool, arguments) -> what it prints."""

    def run(tool, *arguments) -> str:
        tool.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """(tool, arguments) -> what it says when it ends with an error, which it must."""

    def run(tool, *arguments) -> str:
        with pytest.raises(SystemExit) as stopped:
            tool.main([str(argument) for argument in arguments])
        code = stopped.value.code
        assert code not in (0, None)
        return code if isinstance(code, str) else capsys.readouterr().err

    return run
