"""Whole runs in this process: what they report and leave, what stops them, where they start."""

import dataclasses
import functools
import json
import logging
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import adaperceiver_jax as ap
from adaperceiver_jax.convert.backbone import adaperceiver_blocks
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.tasks.make import make_task
from adaperceiver_jax.train import loop
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.loop import NotFiniteError
from adaperceiver_jax.train.settings import ProfileSettings
from adaperceiver_jax.train.step import loss_and_gradients
from tests.small_models import random_params
from tests.small_models import run as apply
from tests.train.small import PLAIN, assert_same, rows, run, run_config, saved_steps

KEEP = {
    **PLAIN,
    "checkpoint.keep_last": 4,
    "evaluation.sub_networks": "((2,6,1),)",
    "ema": 0.9,
    "optimizer.lr": 0.05,
}


@pytest.fixture(scope="module", autouse=True)
def _programs_are_made_once():
    """Runs of the same settings share them, so that they are traced and compiled once."""
    made, original = {}, loop.programs_of

    def programs_of(settings, *others):
        key = repr(dataclasses.replace(settings, profile=ProfileSettings()))
        if key not in made:
            made[key] = original(settings, *others)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "programs_of", programs_of)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, with the checkpoints 2, 4, 6 and 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        folder = tmp_path_factory.mktemp("finished")
        result = run(folder, "scratch", {**KEEP, "profile.start": 2, "profile.steps": 1})
    assert (result.step, result.finished) == (8, True)
    assert rows(folder)[-1].items() >= result.metrics.items()
    return folder


def weights(folder, item="ema"):
    return Checkpoints(folder).restore_weights(item)[1]


def test_a_run_leaves_what_it_says(finished):
    assert saved_steps(finished) == [2, 4, 6, 8]
    table = rows(finished)
    assert [row["step"] for row in table] == [2, 4, 6, 8]
    assert all(
        {"loss", "token", "depth", "lr", "grad_norm", "update_norm"} <= set(r) for r in table
    )
    assert [("t4_w12_l2/accuracy" in row) for row in table] == [False, True, False, True]
    for row in table:
        np.testing.assert_allclose(row["loss"], row["token"] + row["depth"], rtol=1e-6)
    model, params = ap.from_pretrained(finished / "model")
    assert model.config == run_config("scratch", KEEP).model
    assert_same(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, weights(finished)))
    assert json.loads((finished / "config.json").read_text())["model"]["depth"] == 2
    assert "state/params/blocks/" in (finished / "shardings.txt").read_text()
    events = b"".join(file.read_bytes() for file in finished.glob("events.out.tfevents.*"))
    assert b"t4_w12_l2/accuracy" in events
    assert b"images_per_second" in events
    assert list(finished.glob("profile/**/*.xplane.pb"))
    # The rate that is logged is the schedule's, with a warm-up of 10% of 8 steps: one.
    schedule, steps = run_config(changes=KEEP).schedule, np.array([1, 3, 5, 7])
    assert (schedule.name, schedule.warmup) == ("cosine", "10%")
    curve = schedule.min_lr + (0.05 - schedule.min_lr) * (1 + np.cos(np.pi * steps / 8)) / 2
    np.testing.assert_allclose([row["lr"] for row in table], curve, rtol=1e-5)


def test_a_run_goes_on_before_a_damaged_checkpoint_and_ends_the_same(finished, tmp_path, caplog):
    again = shutil.copytree(finished, tmp_path / "again")
    shutil.rmtree(again / "model")
    newest = again / "checkpoints" / "8"
    # All of its files, everywhere: some hold nothing that is read, and which depends on timing.
    for file in (newest / "params").rglob("d/*"):
        file.write_bytes(bytes(byte ^ 4 for byte in file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert run(again, "scratch", KEEP).finished
    assert f"{newest} is damaged and passed over" in caplog.text
    for item in ("params", "ema", "optimizer"):
        assert_same(weights(again, item), weights(finished, item))
    assert (again / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_a_run_that_is_over_has_nothing_left_to_do(finished, capsys):
    before = (finished / "metrics.csv").read_bytes()
    result = run(finished, "scratch", KEEP)
    assert (result.step, result.finished) == (8, True)
    assert "t4_w12_l2/accuracy" in result.metrics
    assert "going on from step 8 of 8" in capsys.readouterr().out
    assert (finished / "metrics.csv").read_bytes() == before


def test_the_best_is_by_the_whole_model_and_of_errors_the_lowest():
    for name, want in (("scratch", "t4_w12_l2/accuracy"), ("nyuv2", "-t4_w12_l2/rmse")):
        assert loop.best_by(make_task(run_config(name))) == want


def test_another_model_in_the_same_folder_is_an_error(finished):
    with pytest.raises(ValueError, match=r"the run's arrays are others .*config.model"):
        run(finished, "scratch", {**KEEP, "model.depth": 3})
    assert saved_steps(finished) == [2, 4, 6, 8]
    # What converts and evaluates the run's checkpoints reads the model from there.
    assert json.loads((finished / "config.json").read_text())["model"]["depth"] == 2


def test_metrics_are_those_of_the_running_mean_over_every_image_once(finished):
    config, reported = run_config(changes=KEEP), rows(finished)[-1]
    model, params = ap.from_pretrained(finished / "model")
    data = config.data
    source = Scenes(
        data.validation_count, data.image_size, "validation", data.seed, data.difficulty
    )
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32)
    images = (images / 255 - np.float32(config.images.mean)) / np.float32(config.images.std)
    labels = np.array([source[i]["label"] for i in range(len(source))])
    losses = []
    for t, w, l in ((4, 12, 2), (2, 6, 1)):
        logits = np.asarray(
            apply(model, params, images, num_tokens=t, width=w, depth=l).logits, np.float64
        )
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        name = f"t{t}_w{w}_l{l}"
        losses.append(-log_probs[np.arange(len(labels)), labels].mean())
        assert reported[f"{name}/loss"] == pytest.approx(losses[-1], abs=1e-5)
        accuracy = (logits.argmax(-1) == labels).mean()
        assert reported[f"{name}/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-4  # the sub-networks do differ


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--workdir=.*/file/run: cannot be written to \("):
        run(tmp_path / "file" / "run", "scratch", KEEP)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(finished, tmp_path):
    original = loop.programs_of

    def stopped(number: int) -> str:
        """The error of a run with parameters that are no numbers at a step."""

        def breaking(*arguments):
            schedule, programs = original(*arguments)

            def update(state, constants, batch, step):
                if step == number:
                    state = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
                return programs.update(state, constants, batch, step)

            return schedule, dataclasses.replace(programs, update=update)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "programs_of", breaking)
            with pytest.raises(NotFiniteError) as error:
                run(tmp_path, "scratch", KEEP)
        return str(error.value)

    assert re.match("step 1 is not finite: loss=nan, .*No checkpoint was saved", stopped(1))
    assert saved_steps(tmp_path) == []
    last = re.escape(f"The last good checkpoint is {tmp_path / 'checkpoints' / '4'}")
    assert re.match(f"step 5 is not finite: loss=nan, depth=nan, .*token=nan.*{last}", stopped(5))
    assert saved_steps(tmp_path) == [2, 4]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]
    run(tmp_path, "scratch", KEEP)  # the same command goes on, and the bad step left no trace
    assert_same(weights(tmp_path, "optimizer"), weights(finished, "optimizer"))


def test_a_run_starts_from_a_vit_and_its_seed_and_trains_what_it_is_told(tmp_path, capsys):
    """The blocks are the ViT's, the rest is fresh; what is frozen stays and has no state."""
    model = run_config("scratch").model
    sizes = {name: getattr(model, name) for name in ("embed_dim", "depth", "num_heads")}
    vit = ap.ViT(ap.ViTConfig(**sizes, mlp_ratio=model.ffn_ratio, image_size=16, patch_size=8))
    weights_of_vit = random_params(vit)
    ap.save_pretrained(vit, weights_of_vit, tmp_path / "vit")
    changes = {**PLAIN, "seed": 3, "length": "2 steps", "init_from": str(tmp_path / "vit")}
    changes["train_only"] = ("output_adapter/.*", "write_head/.*")
    run(tmp_path, "scratch", changes)
    assert f"{tmp_path / 'vit'}: 18 parameters loaded" in capsys.readouterr().out
    init = jax.jit(make_task(run_config("scratch", changes)).init_params)(jax.random.key(3))
    blocks = adaperceiver_blocks(weights_of_vit, layer_scale="ls1" in init["blocks"])
    fresh = flatten_dict({**init, **blocks}, sep="/")
    for item in ("params", "ema"):
        after = flatten_dict(weights(tmp_path, item), sep="/")
        assert set(after) == set(fresh)
        for name, value in fresh.items():
            trained = name.startswith(("output_adapter/", "write_head/"))
            same = bool((np.asarray(after[name]) == np.asarray(value)).all())
            assert same != trained or name.endswith("k/bias"), (item, name)
    saved = jax.tree_util.tree_leaves_with_path(weights(tmp_path, "optimizer"))
    named = [jax.tree_util.keystr(path) for path, leaf in saved if leaf.ndim]
    assert named
    assert all("output_adapter" in name or "write_head" in name for name in named)


@pytest.mark.parametrize("name", ["teacher", pytest.param("stage3_width", marks=pytest.mark.slow)])
def test_a_batch_in_two_parts_gives_the_same_gradients(name):
    """To 1e-5 of each one's largest. Mixing, widths and tokens are drawn as one."""
    task = make_task(
        run_config("scratch", {"task": name}) if name == "teacher" else run_config(name)
    )
    params, key = jax.jit(task.init_params)(jax.random.key(0)), jax.random.key(1)
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), np.uint8)
    drawn = task.draw({"image": jnp.asarray(images), "label": jnp.arange(8)}, key, jnp.int32(0))

    @functools.partial(jax.jit, static_argnums=1)
    def compute(params, parts):
        return loss_and_gradients(task, params, {}, task.constants(), *drawn, key, parts)

    (whole, want), (parts, found) = compute(params, 1), compute(params, 2)
    for metric in whole:
        np.testing.assert_allclose(parts[metric], whole[metric], rtol=1e-5, err_msg=metric)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    assert largest > 1e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-7 * largest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "config.batch_size=12: cannot be split over 8 devices; use 8 or 16"),
        ({"accumulate": 2}, r"config.batch_size=8: .* use 16"),
        ({"evaluation.batch_size": 4}, "config.evaluation.batch_size=4: cannot be split over 8"),
        ({"mesh.fsdp": 3}, "fsdp=3: must multiply to the 8 devices"),
        ({"data.dir": "not/there"}, "config.data.dir='not/there': there is no such folder"),
        ({"data.source": "imagenet1k"}, "config.data.source='imagenet1k': must be 'scenes'"),
        ({"task": "distill", "teacher.path": ""}, "config.teacher.path='': distillation needs a"),
        ({"task": "distill", "teacher.path": "not/there"}, "not/there"),
        ({"schedule.warmup": "9 steps"}, "warmup_steps=9: must be from 0 to the run's 8"),
        ({"evaluation.sub_networks": ((4, 12, 3),)}, r"config.evaluation.sub_networks: depth=3"),
        ({"evaluation.sub_networks": ((4, 13, 2),)}, r"config.evaluation.sub_networks: width=13"),
        ({"train_only": ("head/.*",)}, "'head/..' matches no parameter"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_compiled(tmp_path, devices, changes, message):
    devices(8)
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, "scratch", changes)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert not (tmp_path / "checkpoints").exists()
