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


def drawn(settings, keys=20):
    draw = jax.jit(Classify(model=MODEL, settings=settings).draw)
    return [draw(BATCH, jax.random.key(n), 0) for n in range(keys)]


def test_each_sample_draws_one_of_the_trained_widths_and_each_depth_a_granularity():
    draws = drawn(LossSettings())
    widths = np.stack([samples["widths"] for samples, _ in draws])
    tokens = np.stack([shared["readout_tokens"] for _, shared in draws])
    assert widths.shape == (20, 64)
    assert tokens.shape == (20, CONFIG.depth)
    assert set(np.unique(widths)) == set(CONFIG.widths)
    assert set(np.unique(tokens)) == set(CONFIG.token_granularities)
    for width in CONFIG.widths:  # a third of 1280, and 6 sigma
        assert abs((widths == width).mean() - 1 / 3) < 0.08
    assert len({row.tobytes() for row in widths}) == 20


def test_stages_draw_only_what_they_train():
    ((samples, shared),) = drawn(LossSettings(widths=False, depths=False), keys=1)
    assert set(samples) == {"images", "labels"}
    assert shared == {}
    ((samples, shared),) = drawn(LossSettings(widths=False), keys=1)
    assert (set(samples), set(shared)) == ({"images", "labels"}, {"readout_tokens"})
    ((samples, shared),) = drawn(LossSettings(depths=False), keys=1)
    assert (set(samples), set(shared)) == ({"images", "labels", "widths"}, set())


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


def test_depths_are_weighted_as_the_settings_say():
    config = ap.AdaPerceiverConfig(**TINY)
    by_depth = np.array([3.0, 1.0, 2.0])
    readouts = SimpleNamespace(token_logits=np.zeros(4), depth_logits=by_depth)
    for schedule, want in (("linear", (3 + 2 * 1 + 3 * 2) / 6), ("uniform", 2.0)):
        task = Classify(
            model=ap.AdaPerceiver(config), settings=LossSettings(depth_schedule=schedule)
        )
        object.__setattr__(task, "logit_loss", lambda logits, labels: logits)
        parts = task.losses(readouts, Targets(labels=None))
        assert float(parts["depth"]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(("name", "value"), [("features", True), ("temperature", 2.0)])
def test_what_needs_a_teacher_is_refused_without_one(name, value):
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY, output_feat_dim=6))
    with pytest.raises(ValueError, match=f"config.loss.{name}={value}: needs a teacher"):
        Classify(model=model, settings=LossSettings(**{name: value}))


def test_labels_are_smoothed_over_all_classes():
    soft = np.asarray(smoothed(jnp.array([2]), 5, 0.1))
    np.testing.assert_allclose(soft, [[0.02, 0.02, 0.92, 0.02, 0.02]], rtol=1e-6)


def test_scores_of_a_sample():
    got = scores(jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.array([1, 1]))
    np.testing.assert_array_equal(got["accuracy"], [1, 0])
    np.testing.assert_allclose(got["loss"], np.log1p(np.exp([-1.0, 3.0])), rtol=1e-6)


def teacher(**changes):
    sizes = dict(
        embed_dim=6, depth=1, num_heads=1, image_size=16, patch_size=4, num_classes=5
    )  # fmt: skip
    return ap.ViT(ap.ViTConfig(**{**sizes, **changes}))


@pytest.mark.parametrize(
    ("config", "changes", "features", "message"),
    [
        ({}, {"num_classes": 7}, False, "config.model.num_classes=5: the teacher has 7 classes"),
        ({}, {}, True, "config.loss.features=True with config.model.output_feat_dim=None"),
        ({"output_feat_dim": 7}, {}, True, "output_feat_dim=7: the teacher's features have 6"),
        ({"output_feat_dim": 6}, {"patch_size": 8}, True, "has 4 patches a side, the teacher 2"),
    ],
)
def test_a_teacher_that_does_not_fit_says_so(config, changes, features, message):
    student = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY, **config))
    with pytest.raises(ValueError, match=message):
        Distill(
            model=student,
            settings=LossSettings(features=features),
            teacher=teacher(**changes),
            teacher_params=dict,
        )


def test_what_cannot_be_trained_says_so():
    bare = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, "widths": ()}))
    with pytest.raises(ValueError, match=r"config.loss.widths=True with config.model.widths=\(\)"):
        Classify(model=bare)
    with pytest.raises(ValueError, match=r"config.vit.num_classes=None: a teacher of logits needs"):
        Teacher(model=teacher(num_classes=None))


def test_the_whole_model_is_evaluated_first_and_once():
    task = Classify(model=MODEL, evaluated=((16, 24, 3), (4, 8, 1)))
    assert task.sub_networks() == ((16, 24, 3), (4, 8, 1))
