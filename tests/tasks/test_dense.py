"""Dense tasks: what a step learns from, what it costs, how it is evaluated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.dense_metrics import (
    depth_errors,
    depth_scores,
    eigen_crop,
    segmentation_scores,
)
from adaperceiver_jax.losses.segmentation import pixel_cross_entropy
from adaperceiver_jax.tasks.dense import DenseSettings
from adaperceiver_jax.tasks.depth import Depth
from adaperceiver_jax.tasks.segment import Segment
from adaperceiver_jax.train.evaluation import Totals, evaluate
from adaperceiver_jax.train.step import loss_and_gradients
from tests.small_models import TINY, random_params, run
from tests.train.small import programs_of

BACKBONE = ap.AdaPerceiverConfig(
    **{**TINY, "num_classes": None}, output_feat_dim=6, use_output_ffn=True
)
CLASSES = 5
PLAIN = DenseSettings()


def segment(settings=PLAIN, backbone=BACKBONE, **fields):
    config = ap.SegmentationConfig(backbone=backbone, num_classes=CLASSES, **fields)
    model = ap.SegmentationModel(config)
    return Segment(model=model, image_size=(16, 16), settings=settings)


def depth(settings=PLAIN, **fields):
    model = ap.DepthModel(ap.DepthConfig(backbone=BACKBONE, bins=8, **fields))
    return Depth(model=model, image_size=(16, 16), settings=settings)


def make_batch(count=4):
    rng = np.random.default_rng(0)
    shape = (count, 16, 16)
    labels = rng.integers(0, CLASSES, shape)
    true = rng.uniform(0.5, 9.0, shape).astype(np.float32)
    # Of very different numbers of labelled pixels.
    valid = rng.random(shape) >= np.linspace(0, 0.6, count)[:, None, None]
    return {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "segmentation": np.where(valid, labels, 255).astype(np.uint8),
        "depth": np.where(valid, true, 0).astype(np.float32),
        "valid": valid,
    }


def cross_entropy(logits, batch):
    """Mean over the labelled pixels of the batch, (..., B, H, W, C) -> (...)."""
    labels = batch["segmentation"].astype(np.int32)
    return pixel_cross_entropy(logits, labels).sum(axis=(-3, -2, -1)) / (labels != 255).sum()


@functools.partial(jax.jit, static_argnums=(0, 3))
def step(task, params, batch, parts=1):
    samples, shared = task.draw(batch, jax.random.key(0), 1000)
    return loss_and_gradients(task, params, {}, {}, samples, shared, jax.random.key(1), parts)


@functools.partial(jax.jit, static_argnums=0)
def losses(task, params, batch, number=1000):
    """Without gradients, which take longest to compile."""
    samples, shared = task.draw(batch, jax.random.key(0), number)
    loss, parts = task.loss(params, {}, samples, shared, jax.random.key(1))
    return {"loss": loss, **parts}


def test_the_loss_by_bands_is_the_whole_maps_cross_entropy_over_all_granularities():
    task, batch = segment(DenseSettings(token_granularities=(2, 5, 32))), make_batch()
    params = random_params(task.model)
    images = task.images.normalise(jnp.asarray(batch["image"]))
    out = run(task.model, params, images, "readouts", token_granularities=(2, 5, 32))
    each = cross_entropy(out.logits, batch)
    assert np.ptp(each) > 1e-3
    np.testing.assert_allclose(losses(task, params, batch)["loss"], each.mean(), rtol=1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_whatever_is_labelled_in_each():
    task, batch = segment(), make_batch()
    params = random_params(task.model)
    (whole, gradients), (parts, sums) = (step(task, params, batch, n) for n in (1, 4))
    np.testing.assert_allclose(whole["loss"], parts["loss"], rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("make", [segment, pytest.param(depth, marks=pytest.mark.slow)])
def test_an_image_or_a_batch_with_nothing_that_counts_teaches_nothing(make):
    task, batch = make(), make_batch()
    params = random_params(task.model)
    batch["segmentation"][2], batch["depth"][2] = 255, 0
    other = {**batch, "image": batch["image"].copy()}
    other["image"][2] = 0
    with_it, without = (step(task, params, x)[0]["loss"] for x in (batch, other))
    np.testing.assert_allclose(with_it, without, rtol=1e-6)
    batch["segmentation"][:], batch["depth"][:] = 255, 0
    metrics, gradients = step(task, params, batch)
    assert float(metrics["loss"]) == pytest.approx(0, abs=1e-5)
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(gradients))


def test_losses_are_weighted_as_the_settings_say_and_the_warm_up_is_counted_in_steps():
    task, batch = depth(DenseSettings(warm_up=7, sig_weight=1.0, gradient_weight=3.0)), make_batch()
    params = random_params(task.model)
    each = [losses(task, params, batch, number=n) for n in (0, 6, 7, 8)]
    sig = [float(x["sig"]) for x in each]
    assert sig[0] == sig[1] < sig[2] == sig[3]
    plain = losses(depth(), params, batch)  # by the default weights, 2 and 0.5
    np.testing.assert_allclose(plain["sig"], 2 * sig[3], rtol=1e-6)
    np.testing.assert_allclose(each[3]["grad"], 6 * plain["grad"], rtol=1e-6)


@pytest.mark.slow
def test_dropout_before_the_head_is_drawn_from_the_steps_key():
    task, batch = segment(head_drop=0.5), make_batch()
    params = random_params(task.model)
    samples, shared = task.draw(batch, jax.random.key(0), 0)
    loss = jax.jit(lambda key: task.loss(params, {}, samples, shared, key)[0])
    found = [float(loss(jax.random.key(k))) for k in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert found[0] != pytest.approx(float(losses(segment(), params, batch)["loss"]), rel=1e-4)


def test_sums_of_batches_are_exact_beyond_32_bits():
    totals = Totals()
    for _ in range(3):
        totals.add({"confusion": jnp.full((2, 2), 2**30 + 1, jnp.int32), "loss": jnp.float32(0.1)})
    sums = totals.sums()
    assert sums["confusion"].tolist() == [[3 * 2**30 + 3] * 2] * 2
    assert float(sums["loss"]) == pytest.approx(3 * float(np.float32(0.1)), rel=1e-15)


def test_depth_beyond_the_models_most_does_not_count():
    task = depth(max_depth=5.0)
    params, batch = random_params(task.model), make_batch()
    cut = {**batch, "depth": np.where(batch["depth"] > 5, 0, batch["depth"])}
    a, b = (losses(task, params, x)["loss"] for x in (batch, cut))
    np.testing.assert_allclose(a, b, rtol=1e-6)


class Fixed(Segment):
    """Scores what it is given, not what it sees."""

    def maps(self, params, images, sub_network):
        return jax.nn.one_hot(images[..., 0] % CLASSES, CLASSES)


def batches_of(arrays, size):
    """As the pipeline gives them: the last is filled up."""
    count = len(arrays["image"])
    for first in range(0, count, size):
        places = np.arange(first, first + size)
        batch = {name: x[np.minimum(places, count - 1)] for name, x in arrays.items()}
        yield {**batch, "weight": (places < count).astype(np.float32)}


def test_the_confusion_adds_up_over_devices_and_uneven_last_batches():
    arrays = make_batch(21)
    task = Fixed(model=segment().model, image_size=(16, 16))
    programs = programs_of(task, 8)
    assert programs.mesh.size == 8
    state = programs.begin(random_params(task.model))
    found = evaluate(task, programs, state, {}, batches_of(arrays, 8))
    predicted, labels = arrays["image"][..., 0] % CLASSES, arrays["segmentation"]
    counted = labels != 255
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (labels[counted], predicted[counted]), 1)
    want = {f"t16_w24_l3/{name}": value for name, value in segmentation_scores(counts).items()}
    assert {name: found[name] for name in want} == want


@pytest.mark.parametrize("eigen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_depth_is_evaluated_over_the_images_that_have_any(eigen):
    task = depth(DenseSettings(eigen_crop=eigen))
    arrays = make_batch(5)
    arrays["depth"][3], arrays["valid"][3] = 0, False
    programs, params = programs_of(task, 8), random_params(task.model)
    found = evaluate(task, programs, programs.begin(params), {}, batches_of(arrays, 8))
    params = random_params(task.model)  # the state's are given away
    images = task.images.normalise(jnp.asarray(arrays["image"]))
    valid = arrays["valid"] & (eigen_crop(16, 16) if eigen else True)
    errors = depth_errors(run(task.model, params, images).depth, arrays["depth"], valid)
    sums = {name: np.asarray(x, np.float64).sum() for name, x in errors.items()}
    assert sums["images"] == 4
    want = {f"t16_w24_l3/{name}": x for name, x in depth_scores(sums, eigen).items()}
    assert found == pytest.approx(want, rel=1e-4)
    assert task.metric.removeprefix("-") in depth_scores(sums, eigen)


@pytest.mark.slow
def test_sub_networks_are_evaluated_as_themselves():
    task, batch = dataclasses.replace(segment(), evaluated=((4, 8, 2),)), make_batch()
    params = random_params(task.model)
    assert task.sub_networks() == ((16, 24, 3), (4, 8, 2))
    images = task.images.normalise(jnp.asarray(batch["image"]))
    evaluated = jax.jit(task.evaluate, static_argnums=3)(params, {}, batch, (4, 8, 2))
    logits = run(task.model, params, images, num_tokens=4, width=8, depth=2).logits
    loss = cross_entropy(logits, batch)
    scores = task.summarise({n: np.asarray(x).sum(0) for n, x in evaluated.items()})
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)
    counted = batch["segmentation"] != 255
    right = (np.asarray(logits).argmax(-1) == batch["segmentation"])[counted].mean()
    assert scores["accuracy"] == pytest.approx(right, abs=1e-3)
