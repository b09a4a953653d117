"""What a run reports of its validation is what its weights say."""

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import Scenes
from tests.small_models import run as apply
from tests.train.small import PLAIN, rows, run, run_config

CHANGES = {
    **PLAIN,
    "length": "6 steps",
    "evaluation.every": "6 steps",
    "evaluation.sub_networks": "((2,6,1),)",
    "ema": 0.9,
    "optimizer.lr": 0.05,
    "profile.start": 2,
    "profile.steps": 1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, run_config(changes=CHANGES), run(folder, changes=CHANGES)


def test_metrics_are_those_of_the_running_mean_over_every_image_once(trained):
    folder, config, result = trained
    model, params = ap.from_pretrained(folder / "model")
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
        assert result.metrics[f"{name}/loss"] == pytest.approx(losses[-1], abs=1e-5)
        accuracy = (logits.argmax(-1) == labels).mean()
        assert result.metrics[f"{name}/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3  # the sub-networks do differ
    assert rows(folder)[-1].items() >= result.metrics.items()


def test_the_rate_that_is_logged_is_the_schedules(trained):
    folder, config, _ = trained
    steps = np.arange(6)
    warm = config.schedule.warmup_lr + (0.05 - config.schedule.warmup_lr) * steps / 1
    low = config.schedule.min_lr
    curve = low + (0.05 - low) * (1 + np.cos(np.pi * steps / 6)) / 2
    assert config.schedule.warmup == "10%"  # of 6 steps: one
    want = np.where(steps < 1, warm, curve)
    np.testing.assert_allclose([row["lr"] for row in rows(folder)], want, rtol=1e-5)


def test_events_and_the_trace_that_was_asked_for_are_written(trained):
    folder, *_ = trained
    (events,) = folder.glob("events.out.tfevents.*")
    assert b"t4_w12_l2/accuracy" in events.read_bytes()
    assert b"images_per_second" in events.read_bytes()
    assert list(folder.glob("profile/**/*.xplane.pb"))
