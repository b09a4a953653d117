"""What is timed side by side computes the same."""

import importlib
import sys
import time

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate import machine
from adaperceiver_jax.models import ffn
from adaperceiver_jax.models.params import scale_kernels
from adaperceiver_jax.models.platform import traced_for
from adaperceiver_jax.tasks.make import make_model
from adaperceiver_jax.train.sharding import make_mesh
from experiments.side_by_side import goals, programs, run
from experiments.side_by_side.programs import torch_model
from experiments.side_by_side.torch_step import Stage3
from tests.small_models import TINY, model_and_params, random_params

SMALL = (
    "model.embed_dim=24,model.num_heads=3,model.depth=3,model.max_latent_tokens=8,"
    "model.token_granularities=({}),model.widths=(24,),model.image_size=16,model.patch_size=4,"
    "model.num_classes=5,model.layer_scale=0.5,data.image_size=16"
)


def test_the_forwards_give_the_same_logits():
    model, params = model_and_params(0, **TINY, block_mask="block")
    calls = programs.forwards(model, params, batch=2, tokens=2, masked=True).calls
    assert list(calls) == [programs.OURS, programs.EAGER, programs.MASKED]
    ours, *theirs = (np.asarray(call()) for call in calls.values())
    for logits in theirs:  # of 2 latents all see each other, whatever the mask
        np.testing.assert_allclose(ours, logits, rtol=2e-5, atol=2e-5)


def test_the_forwards_under_the_mask_give_the_same_logits():
    model, params = model_and_params(0, **TINY, block_mask="block")
    calls = programs.forwards(model, params, batch=2, tokens=16, masked=True).calls
    ours, free, masked = (np.asarray(call()) for call in calls.values())
    np.testing.assert_allclose(ours, masked, rtol=2e-5, atol=2e-5)
    assert np.abs(ours - free).max() > 1e-3  # what is timed without the mask is another function


def test_the_losses_are_the_same_for_the_same_draws(monkeypatch):
    """Of several granularities and widths, under weights that make the mask matter."""
    monkeypatch.setattr(ffn, "LEAST_PRODUCT", 1)
    small = SMALL.format("2,4,8").replace("widths=(24,)", "widths=(8,16,24)")
    config = programs.stage3(small)
    model = make_model(config)
    params = random_params(model)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    task = programs.GivenLogits(model=model, settings=config.loss, images=config.images)
    batch = {"image": pixels, "label": np.zeros(3, np.int32)}
    theirs = Stage3(torch_model(model, params), config.images.mean, config.images.std)
    for seed in range(3):
        key = jax.random.key(seed)
        samples, shared = task.draw(batch, key, 0)
        samples["widths"] = np.roll(samples["widths"], seed)
        with traced_for(make_mesh(config.mesh, jax.devices()[:1])):  # as it is timed
            ours, _ = task.loss(params, {"logits": logits}, samples, shared, key)
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
        (["train", "--batch", "0"], "must be at least 1"),
        (["forward", "--batch", "4", "--tokens", "0"], "must be at least 1"),
        (["train", "--batch", "4", "--tokens", "32"], "a step is of all of them"),
        (["train", "--batch", "4", "--config", "model.dept=2"], "dept"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, why, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert why in capsys.readouterr().err


@pytest.fixture
def made_up(monkeypatch):
    """made_up(**seconds) -> work of programs that take so many by the clock, each just as long, on
    a machine that does 1 FLOP a second."""
    clock = [0.0]

    def taking(seconds):
        clock[0] += seconds

    def work(**seconds):
        calls = {getattr(programs, k): lambda s=s: taking(s) for k, s in seconds.items()}
        return programs.SideBySide(calls, flops=4.5, least_bytes=0.0)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(machine, "measure_ceiling", lambda dtype: machine.Ceiling(1.0, 1.0))
    monkeypatch.setattr(ap, "init_params", lambda *_: {})
    for module in (goals, run):
        monkeypatch.setattr(module, "torch_products", lambda dtype: 0.5)
    return work


@pytest.mark.parametrize(
    ("what", "theirs", "status"),
    [("forward", 9.1, 0), ("forward", 8.9, 1), ("train", 10.1, 0), ("train", 9.9, 1)],
)
def test_the_bars_are_of_our_time_over_eager_pytorchs(
    what, theirs, status, made_up, monkeypatch, capsys
):
    """Ours takes 9 seconds; compiled PyTorch, which is no bar, takes 1."""
    work = made_up(OURS=9.0, EAGER=theirs, COMPILED=1.0)
    monkeypatch.setattr(run, "forwards", lambda *_: work)
    monkeypatch.setattr(run, "steps", lambda *_: work)
    arguments = [what, "--batch", "4", "--repeats", "2", "--config", "model.depth=1"]
    assert run.main([*arguments, *(["--tokens", "32"] if what == "forward" else [])]) == status
    *_, ours, eager, compiled, _, ceiling, verdict = capsys.readouterr().out.splitlines()
    assert ours.split()[-4:] == ["ours", "9.000", "4.500", "50%"]
    ratio = f"{9 / theirs:.3f}"
    assert eager.split()[1:] == [f"{theirs:.3f}", ratio, f"({ratio}", "to", f"{ratio})", ratio]
    assert compiled.split()[-1] == "9.000"
    assert ceiling == "Products of large matrices: 0 GFLOP/s."
    assert verdict.split(":")[0] == ("MISSED" if status else "Held")


def test_the_dtype_is_the_configs(made_up, monkeypatch, capsys):
    monkeypatch.setattr(run, "steps", lambda *_: made_up(OURS=1.0, EAGER=2.0))
    asked = "model.depth=1,compute.dtype=bfloat16"
    assert run.main(["train", "--batch", "4", "--repeats", "1", "--config", asked]) == 0
    assert capsys.readouterr().out.startswith("train, bfloat16, ")


@pytest.mark.parametrize("name", ["run", "goals"])
def test_without_pytorch_the_remedy_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for module in (name, "programs"):
        monkeypatch.delitem(sys.modules, f"experiments.side_by_side.{module}")
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[torch\]'"):
        importlib.import_module(f"experiments.side_by_side.{name}")


@pytest.mark.parametrize(("device", "status"), [("cpu", 0), ("cuda", 1)])
def test_goals_are_judged_on_a_gpu_alone(device, status, made_up, monkeypatch, capsys):
    seconds = {"t = 32": (1.0, 2.0), "t = 256": (4.0, 8.0), "step": (9.0, 9.9)}

    def work(name):
        ours, theirs = seconds[name]
        return made_up(OURS=ours, COMPILED=theirs)

    monkeypatch.setattr(goals, "use_the_same_device", lambda: device)
    monkeypatch.setattr(goals, "forwards", lambda m, p, b, tokens, **_: work(f"t = {tokens}"))
    monkeypatch.setattr(goals, "steps", lambda *_, **__: work("step"))
    assert goals.main(["--repeats", "2"]) == status
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if ": " in line]
    verdicts = (
        ("no verdict",) * 5 if device == "cpu" else ("held", "held", "MISSED", "held", "MISSED")
    )
    names = [
        "PyTorch's time over ours: 2 of 1.2",
        "PyTorch's time over ours: 2 of 1.2",
        "images a second, 32 tokens over 256: 4 of 5.0",
        "MFU of a step: 0.5 of 0.45",
        "PyTorch's time over ours: 1.1 of 1.2",
    ]
    assert said == [f"{v}: {name}" for v, name in zip(verdicts, names, strict=True)]
