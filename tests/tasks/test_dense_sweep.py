"""A sweep scores each sub-network as if it were run alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.evaluate.dense_metrics import (
    confusion_matrix,
    eigen_crop,
    segmentation_scores,
)
from adaperceiver_jax.tasks.dense import DenseSettings
from adaperceiver_jax.tasks.dense_sweep import over_processes, own_size_batches, sweep_dense
from tests.models.test_dense import VIT, bilinear
from tests.small_models import random_params, run
from tests.tasks.test_dense import BACKBONE, CLASSES, batches_of, depth, make_batch, segment


def scores_alone(task, params, arrays, sub_network):
    images = task.images.normalise(jnp.asarray(arrays["image"]))
    chosen = dict(zip(("num_tokens", "width", "depth"), sub_network, strict=True))
    logits = run(task.model, params, images, **chosen).logits
    counts = confusion_matrix(logits.argmax(-1), arrays["segmentation"], CLASSES)
    return segmentation_scores(np.asarray(counts).sum(0))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        slow({"block_mask": "none"}),
        slow({"max_latent_tokens": 8}),
        slow({"max_latent_tokens": 8, "rope_scale": 1.0}),
    ],
    ids=["block", "no mask", "beyond the maximum", "beyond it, never scaled"],
)
def test_each_sub_network_is_scored_as_if_run_alone(variant):
    task = segment(backbone=BACKBONE.replace(**variant))
    params, arrays = random_params(task.model), make_batch(11)
    tokens, widths, depths = (4, 5, 16, 20), (8, 24), (1, 3)
    points = sweep_dense(task, params, batches_of(arrays, 8), tokens, widths, depths)
    found = {(p.num_tokens, p.width, p.depth): p for p in points}
    assert set(found) == set(itertools.product(tokens, widths, depths))
    for sub_network in [(4, 8, 1), (5, 24, 3), (20, 8, 3)]:
        want = scores_alone(task, params, arrays, sub_network)
        assert found[sub_network].scores["accuracy"] == pytest.approx(want["accuracy"], abs=2e-3)
        assert found[sub_network].scores["miou"] == pytest.approx(want["miou"], abs=2e-3)
        cost = ap.flops(task.model.config, *sub_network)
        assert found[sub_network].encoder_gflops == cost.encoder / 1e9
        assert found[sub_network].head_gflops == cost.head / 1e9
        assert cost.encoder + cost.head == cost.total
    assert len({p.scores["loss"] for p in points}) > 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "chosen"), [(VIT, {}), (BACKBONE, dict(num_tokens=4, width=24))]
)
def test_mirror_images_are_averaged(backbone, chosen):
    task = segment(backbone=backbone)
    params, arrays = random_params(task.model), make_batch(8)
    axes = ((value,) for value in chosen.values())
    (point,) = sweep_dense(task, params, batches_of(arrays, 8), *axes, flip=True)
    images = task.images.normalise(jnp.asarray(arrays["image"]))
    maps, mirrored = (
        run(task.model, params, x, "maps", **chosen) for x in (images, images[:, :, ::-1])
    )
    resized = bilinear(np.asarray(maps + mirrored[:, :, ::-1]) / 2, 16, 16)
    log_probs = resized - np.log(np.exp(resized).sum(-1, keepdims=True))
    labels, counted = arrays["segmentation"], arrays["segmentation"] != 255
    picked = np.take_along_axis(log_probs, np.where(counted, labels, 0)[..., None], -1)[..., 0]
    assert point.scores["loss"] == pytest.approx(-picked[counted].mean(), rel=1e-4)
    kind = "trained" if chosen else "whole"
    assert (point.num_tokens, point.tokens_are) == (chosen.get("num_tokens"), kind)


class Ragged:
    """Images and maps of any size."""

    sizes = ((20, 33), (16, 16), (9, 40), (31, 8), (130, 20))

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (*self.sizes[i], 3), np.uint8)
        labels = rng.integers(0, CLASSES, self.sizes[i]).astype(np.uint8)
        true = rng.uniform(0.5, 9, self.sizes[i]).astype(np.float32)
        return {"image": image, "segmentation": labels, "depth": true, "name": str(i)}


def cropped_depth():
    return depth(DenseSettings(eigen_crop=True))


@pytest.mark.parametrize("make", [segment, slow(depth), slow(cropped_depth)])
def test_maps_of_many_sizes_are_scored_at_their_own(make):
    task = make()
    params = random_params(task.model)
    prepare = Preparation(size=(16, 16), inputs=task.inputs, num_classes=task.num_classes)
    batches = own_size_batches(Ragged(), prepare.own_size, 8)
    own = sweep_dense(task, params, batches, (16,), (24,), own_size=True)[1]
    assert own.resolution == "own"
    counts, rmse = np.zeros((CLASSES, CLASSES), np.int64), []
    for i in range(len(Ragged())):
        sample = Ragged()[i]
        pixels = prepare.evaluate(sample)["image"]
        images = task.images.normalise(jnp.asarray(pixels[None]))
        (maps,) = np.asarray(run(task.model, params, images, "maps"))
        resized = bilinear(maps, *sample["segmentation"].shape)
        np.add.at(counts, (sample["segmentation"], resized.argmax(-1)), 1)
        inside = np.ones(sample["depth"].shape, bool)
        if make is cropped_depth:
            inside = eigen_crop(*sample["depth"].shape)
        rmse.append(np.sqrt(((resized[..., 0] - sample["depth"])[inside] ** 2).mean()))
    if make is segment:
        want = segmentation_scores(counts)
        assert own.scores["accuracy"] == pytest.approx(want["accuracy"], abs=2e-3)
        assert own.scores["miou"] == pytest.approx(want["miou"], abs=2e-3)
    else:
        name = "rmse" if make is depth else "eigen_rmse"
        assert own.scores[name] == pytest.approx(np.mean(rmse), rel=1e-4)


def test_each_process_takes_its_own_images_and_their_sums_are_exact(monkeypatch):
    counts = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        prepare = Preparation(size=(16, 16), inputs=("image", "segmentation"))
        batches = list(own_size_batches(Ragged(), prepare.own_size, 2))
        counts.append(sum(int(b["weight"].sum()) for b in batches))
    assert counts == [2, 2, 1]
    sums = {"confusion": np.array([[2**40 + 1, 5]], np.int64), "loss": np.float64(0.1)}

    def gather(mine):  # three processes with the same sums
        assert mine.dtype == np.uint8  # JAX would cut 64 bits to 32
        return np.stack([mine] * 3)

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    total = over_processes(sums)
    np.testing.assert_array_equal(total["confusion"], [[3 * (2**40 + 1), 15]])
    assert total["loss"].shape == ()
    assert float(total["loss"]) == pytest.approx(0.3, rel=1e-15)


def test_what_is_not_there_is_refused():
    task = segment()
    with pytest.raises(ValueError, match=r"width=25: must be in 1\.\.24"):
        sweep_dense(task, {}, [], (4,), (25,))
    with pytest.raises(ValueError, match="batches: held no images"):
        sweep_dense(task, {}, [])
