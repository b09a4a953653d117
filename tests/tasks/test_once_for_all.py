"""What a step draws, and the explicit loss over widths. Numbers agree to 1e-5."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.tasks.classify import Classify, Teacher
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.once_for_all import LossSettings, Targets, scores, smoothed
from tests.small_models import TINY, random_images, random_params, run

CONFIG = ap.AdaPerceiverConfig(**TINY)
MODEL = ap.AdaPerceiver(CONFIG)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), np.uint8),
    "label": np.arange(64, dtype=np.int32) % 5,
}


def test_each_sample_draws_one_of_the_trained_widths_and_each_depth_a_granularity():
    draw = jax.jit(Classify(model=MODEL).draw)
    draws = [draw(BATCH, jax.random.key(n), 0) for n in range(20)]
    widths = np.stack([samples["widths"] for samples, _ in draws])
    tokens = np.stack([shared["readout_tokens"] for _, shared in draws])
    assert widths.shape == (20, 64)
    assert tokens.shape == (20, CONFIG.depth)
    assert set(np.unique(widths)) == set(CONFIG.widths)
    assert set(np.unique(tokens)) == set(CONFIG.token_granularities)
    for width in CONFIG.widths:  # a third of 1280, and 6 sigma
        assert abs((widths == width).mean() - 1 / 3) < 0.08
    assert len({row.tobytes() for row in widths}) == 20


@pytest.mark.parametrize(("widths", "depths"), [(False, False), (False, True), (True, False)])
def test_stages_draw_only_what_they_train(widths, depths):
    task = Classify(model=MODEL, settings=LossSettings(widths=widths, depths=depths))
    samples, shared = jax.jit(task.draw)(BATCH, jax.random.key(0), 0)
    assert set(samples) == {"images", "labels", *(["widths"] if widths else [])}
    assert set(shared) == {*(["readout_tokens"] if depths else [])}


def test_the_explicit_width_loss_is_the_mean_over_one_pass_a_width():
    params, weight = random_params(MODEL), 0.7
    images = random_images(CONFIG, batch=3)
    labels = np.eye(5, dtype=np.float32)[:3]
    task = Classify(model=MODEL, settings=LossSettings(width_loss=weight, depths=False))
    samples = {"images": images, "labels": labels, "widths": np.array([8, 16, 24])}
    key = jax.random.key(0)
    total, parts = jax.jit(task.loss)(params, {}, samples, {}, key)
    each = []
    for width in CONFIG.widths:
        logits = np.asarray(run(MODEL, params, images, width=width).logits, np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        each.append(-(labels * log_probs).sum(axis=-1).mean())
    assert np.ptp(each) > 1e-3
    np.testing.assert_allclose(parts["width"], weight * np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(total, parts["token"] + parts["width"], rtol=1e-6)


@pytest.mark.parametrize(("schedule", "want"), [("linear", 11 / 6), ("uniform", 2.0)])
def test_depths_are_weighted_as_the_settings_say(schedule, want):
    """Depths of losses 3, 1 and 2."""
    readouts = SimpleNamespace(token_logits=np.zeros(4), depth_logits=np.array([3.0, 1.0, 2.0]))
    task = Classify(model=MODEL, settings=LossSettings(depth_schedule=schedule))
    object.__setattr__(task, "logit_loss", lambda logits, labels: logits)
    parts = task.losses(readouts, Targets(labels=None))
    assert float(parts["depth"]) == pytest.approx(want, rel=1e-6)


def test_labels_are_smoothed_over_all_classes_and_samples_scored():
    soft = np.asarray(smoothed(jnp.array([2]), 5, 0.1))
    np.testing.assert_allclose(soft, [[0.02, 0.02, 0.92, 0.02, 0.02]], rtol=1e-6)
    got = scores(jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.array([1, 1]))
    np.testing.assert_array_equal(got["accuracy"], [1, 0])
    np.testing.assert_allclose(got["loss"], np.log1p(np.exp([-1.0, 3.0])), rtol=1e-6)


def test_the_whole_model_is_evaluated_first_and_once():
    task = Classify(model=MODEL, evaluated=((16, 24, 3), (4, 8, 1)))
    assert task.sub_networks() == ((16, 24, 3), (4, 8, 1))


def student(**changes):
    return ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, **changes}))


def teacher(**changes):
    sizes = dict(embed_dim=6, depth=1, num_heads=1, image_size=16, patch_size=4, num_classes=5)
    return ap.ViT(ap.ViTConfig(**{**sizes, **changes}))


FEATURES = LossSettings(features=True)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (Classify, dict(model=student(widths=())), r"config.loss.widths=True with config.model.wi"),
        (Classify, dict(model=student(output_feat_dim=6), settings=FEATURES),
         "config.loss.features=True: needs a teacher"),
        (Classify, dict(model=MODEL, settings=LossSettings(temperature=2.0)),
         "config.loss.temperature=2.0: needs a teacher"),
        (Teacher, dict(model=teacher(num_classes=None)), "config.vit.num_classes=None: a teacher"),
        (Distill, dict(model=MODEL, teacher=teacher(num_classes=7)),
         "config.model.num_classes=5: the teacher has 7 classes"),
        (Distill, dict(model=MODEL, settings=FEATURES, teacher=teacher()),
         "config.loss.features=True with config.model.output_feat_dim=None"),
        (Distill, dict(model=student(output_feat_dim=7), settings=FEATURES, teacher=teacher()),
         "output_feat_dim=7: the teacher's features have 6"),
        (Distill, dict(model=student(output_feat_dim=6), settings=FEATURES,
                       teacher=teacher(patch_size=8)), "has 4 patches a side, the teacher 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_says_so(task, fields, message):
    with pytest.raises(ValueError, match=message):
        task(**fields, **({"teacher_params": dict} if task is Distill else {}))
