"""Programs that are timed side by side compute the same, and are judged by the medians."""

import importlib
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.turns import Turns
from adaperceiver_jax.models.params import scale_kernels
from adaperceiver_jax.tasks.make import make_model
from experiments.side_by_side import programs, run
from experiments.side_by_side.programs import torch_model
from experiments.side_by_side.torch_step import Stage3
from tests.small_models import TINY, model_and_params, random_params
from tools import speed

SMALL = (
    "model.embed_dim=24,model.num_heads=3,model.depth=3,model.max_latent_tokens=8,"
    "model.token_granularities=({}),model.widths=(24,),model.image_size=16,model.patch_size=4,"
    "model.num_classes=5,model.layer_scale=0.5,data.image_size=16"
)


def test_the_forwards_give_the_same_logits_where_their_mask_is_the_same():
    model, params = model_and_params(0, **TINY, block_mask="block")
    calls = programs.forwards(model, params, batch=2, tokens=16, masked=True).calls
    assert list(calls) == [programs.OURS, programs.EAGER, programs.MASKED]
    ours, free, masked = (np.asarray(call()) for call in calls.values())
    np.testing.assert_allclose(ours, masked, rtol=2e-5, atol=2e-5)
    assert np.abs(ours - free).max() > 1e-3  # without the mask another function is timed


def test_the_losses_are_the_same_for_the_same_draws():
    """Several granularities and widths, under weights that make the mask matter."""
    config = programs.stage3(SMALL.format("2,4,8").replace("widths=(24,)", "widths=(8,16,24)"))
    model = make_model(config)
    params = random_params(model)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    task = programs.GivenLogits(model=model, settings=config.loss, images=config.images)
    batch = {"image": pixels, "label": np.zeros(3, np.int32)}
    theirs = Stage3(torch_model(model, params), config.images.mean, config.images.std)
    key = jax.random.key(0)
    samples, shared = task.draw(batch, key, 0)
    ours = jax.jit(lambda *a: task.loss(params, {"logits": logits}, *a)[0])(samples, shared, key)
    draws = samples["widths"].tolist(), shared["readout_tokens"].tolist()
    assert len(set(draws[0])) > 1
    loss = theirs.loss(torch.tensor(pixels), torch.tensor(logits), *draws)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    others = theirs.loss(torch.tensor(pixels), torch.tensor(logits), [24] * 3, draws[1])
    assert abs(ours - others.item()) > 1e-3  # widths count


@pytest.mark.slow
def test_the_training_steps_give_the_same_losses_step_by_step():
    """All draws alike, for want of one stream of random numbers: one width, one granularity."""
    config = programs.stage3(SMALL.format("8,"))
    params = scale_kernels(ap.init_params(make_model(config), jax.random.key(0)), 6.0)
    work = programs.steps(config, params, 3)
    losses = [[step() for _ in range(4)] for step in work.calls.values()]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][0] - losses[0][-1] > 1e-4  # they do learn
    assert work.flops > 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["forward", "--batch", "4", "--tokens", "0"], "must be at least 1"),
        (["train", "--batch", "4", "--tokens", "32"], "a step is of all of them"),
        (["train", "--batch", "4", "--config", "model.dept=2"], "dept"),
    ],
)
def test_mistakes_are_refused_before_anything_is_timed(arguments, why, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "theirs", "status", "verdict"),
    [
        (("forward", "--tokens", "32"), 9.1, 0, "Held: at most 1.0 x"),
        (("forward", "--tokens", "32"), 8.9, 1, "MISSED: at most 1.0 x"),
        (("train",), 8.0, 0, "Over PyTorch's eager time (medians 1.125 to 1.125)."),
    ],
)
def test_the_bar_is_of_our_forward_over_eager_pytorchs(
    what, theirs, status, verdict, monkeypatch, capsys
):
    """By turns in which ours takes 9 seconds; compiled PyTorch, which is no bar, takes 1."""
    seconds = {programs.OURS: 9.0, programs.EAGER: theirs, programs.COMPILED: 1.0}
    wall = {name: [s, s] for name, s in seconds.items()}
    work = programs.SideBySide(dict.fromkeys(seconds, int), flops=4.5, least_bytes=0.0)
    monkeypatch.setattr(run, "take_turns", lambda *_: Turns(wall, wall))
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: speed.Ceiling(1.0, 1.0))
    monkeypatch.setattr(run, "torch_products", lambda dtype: 0.5)
    for name in ("forwards", "steps"):
        monkeypatch.setattr(run, name, lambda *_: work)
    small = "model.depth=1,compute.dtype=bfloat16"
    assert run.main([*what, "--batch", "4", "--repeats", "2", "--config", small]) == status
    first, *_, ours, eager, compiled, _, _, said = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{what[0]}, bfloat16, ")  # --config may say it
    assert ours.split()[-4:] == ["ours", "9.000", "4.500", "50%"]
    assert eager.split()[1:3] == [f"{theirs:.3f}", f"{9 / theirs:.3f}"]
    assert compiled.split()[-1] == "9.000"
    assert said.startswith(verdict)


def test_without_pytorch_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in ("run", "programs"):
        monkeypatch.delitem(sys.modules, f"experiments.side_by_side.{module}")
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[torch\]'"):
        importlib.import_module("experiments.side_by_side.run")
