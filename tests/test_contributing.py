"""The worked examples of docs/contributing.md, taken from that page and used as it says."""

import dataclasses
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.data import sources
from adaperceiver_jax.evaluate import flops
from adaperceiver_jax.evaluate.outcomes import join, make_grid
from adaperceiver_jax.evaluate.sweep import collect
from adaperceiver_jax.models import dense
from adaperceiver_jax.policies.compare import compare
from adaperceiver_jax.policies.fixed import EarlyExit
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.loop import train
from adaperceiver_jax.train.settings import from_config
from configs import ade20k, scratch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "contributing.md"
SHORT = "length=2 steps,evaluation.every=100%,batch_size=8,data.validation_count=8"


def example(title: str) -> str:
    """The Python of a section."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    return code


def run(title: str) -> dict:
    """What the example defines."""
    names: dict = {"__name__": "example"}
    exec(example(title), names)
    return names


def trained(config, workdir):
    """The model and weights that a run leaves."""
    settings = from_config(RunConfig, config.to_dict())
    assert train(settings, make_task(settings), workdir).finished
    return ap.from_pretrained(workdir / "model")


@pytest.mark.parametrize("title", ["A data set", "A head", "A policy", "A stage"])
def test_each_example_has_fewer_than_fifty_lines(title):
    assert len(example(title).splitlines()) < 50


@pytest.mark.slow
def test_the_data_set_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "KINDS", dict(sources.KINDS))
    opened = run("A data set")
    monkeypatch.setitem(sources.KINDS, "npz", opened["open_npz"])
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("validation", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 40, 36, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(tmp_path / "flowers.npz", **arrays)
    config = scratch.get_config(
        f"runlocal,{SHORT},data.source=npz:flowers.npz,data.dir={tmp_path},data.train_count=0"
    )
    model, _ = trained(config, tmp_path / "run")
    assert model.config.num_classes == 10
    arrays["train_images"] = arrays["train_images"].astype(np.float32)
    np.savez(tmp_path / "flowers.npz", **arrays)
    with pytest.raises(ValueError, match=r"source='npz:flowers.npz': train_images: must be"):
        sources.open_source("npz:flowers.npz", str(tmp_path))


@pytest.mark.slow
def test_the_head_is_trained_saved_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "SEGMENTATION_HEADS", dict(dense.SEGMENTATION_HEADS))
    monkeypatch.setattr(flops, "HEAD_FLOPS", dict(flops.HEAD_FLOPS))
    head = run("A head")
    config = ade20k.get_config(f"runlocal,{SHORT},dense.head=mlp")
    model, params = trained(config, tmp_path / "run")
    assert model.config.head == "mlp"
    features, classes = model.config.features, model.config.num_classes
    assert params["head"]["hidden"]["kernel"].shape == (1, 1, features, features)
    linear = dataclasses.replace(model.config, head="linear")
    more = ap.flops(model.config).head - ap.flops(linear).head
    assert more == 2 * 64 * features**2
    module, maps = head["MlpHead"](classes), jax.ShapeDtypeStruct((1, 8, 8, 512), np.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), maps)
    counted = jax.jit(module.apply).lower(weights, maps).compile().cost_analysis()["flops"]
    wide = types.SimpleNamespace(features=512, num_classes=classes)
    products = head["mlp_head_flops"](wide, 64)
    assert products <= counted <= 1.1 * products  # XLA counts norm, GELU and biases as well


def test_a_head_whose_flops_are_not_known_is_not_counted_as_another(monkeypatch):
    monkeypatch.setitem(dense.SEGMENTATION_HEADS, "odd", dense.SEGMENTATION_HEADS["linear"])
    config = from_config(RunConfig, ade20k.get_config("runlocal").to_dict())
    odd = ap.SegmentationConfig(backbone=config.model, num_classes=3, head="odd")
    with pytest.raises(ValueError, match=r"head='odd': its FLOPs are not known; add them to HEAD"):
        ap.flops(odd)


def test_the_policy_is_compared_and_served():
    model, params = ap.from_pretrained(ROOT / "experiments/colab/weights/classifier")
    by_contrast = run("A policy")["ByContrast"]
    images = np.random.default_rng(0).standard_normal((6, 32, 32, 3), np.float32)
    images[:3] *= 0.1
    policy = by_contrast(model.config, few=2, many=8, limit=0.5)
    assert policy(images).num_tokens.tolist() == [8, 8, 8, 2, 2, 2]
    grid = make_grid(model.config, tokens=(2, 8))
    outcomes = join(list(collect(model, params, [(images, np.zeros(6, np.int32))], grid)))
    rows = compare(model, {"mine": policy, "left": EarlyExit(0.0, policy)}, [images], outcomes)
    assert rows[1].gflops < rows[0].gflops
    served = ap.policies.Server(model, params, policy, batch_size=3)(images)
    for i, t in ((0, 8), (5, 2)):
        alone = model.apply({"params": params}, images[i : i + 1], num_tokens=t)
        np.testing.assert_allclose(served.logits[i], alone.logits[0], rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_the_stage_is_a_config_and_trains(tmp_path):
    get_config = run("A stage")["get_config"]
    whole = from_config(RunConfig, get_config().to_dict())
    assert whole.model.token_granularities[-1] == whole.model.max_latent_tokens == 512
    assert whole.init_from == "runs/stage3"
    model, _ = trained(get_config(f"runlocal,{SHORT}"), tmp_path / "run")
    assert model.config.max_latent_tokens == 32
