"""The trainer's own step against the reference: losses, gradients and what becomes of them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import struct

import adaperceiver_jax as ap
from adaperceiver_jax.optim.optimizer import clip_by_global_norm
from adaperceiver_jax.tasks.classify import Classify
from adaperceiver_jax.tasks.dense import DenseSettings
from adaperceiver_jax.tasks.depth import Depth
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.objective import ImageSettings
from adaperceiver_jax.tasks.once_for_all import LossSettings
from adaperceiver_jax.tasks.segment import Segment
from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import loss_and_gradients, make_programs
from tests.parity.reading import (
    FEATURES,
    GRADIENTS,
    LOSSES,
    TRAINED,
    assert_gradients,
    depth_model,
    read,
)
from tests.train.small import gradient_descent


@struct.dataclass
class Known:
    logits: jax.Array
    features: jax.Array


class Recalls(nn.Module):
    """A teacher that knows some images, and what was said of them, by heart."""

    config: ap.ViTConfig

    @nn.compact
    def __call__(self, images):
        known, logits, features = (
            self.get_variable("params", name) for name in ("images", "logits", "features")
        )
        which = (images[:, None] == known).all((2, 3, 4)).argmax(axis=1)
        return Known(logits[which], features[which])


def distillation(golden):
    teacher = ap.ViTConfig(
        embed_dim=FEATURES, depth=1, num_heads=2, patch_size=8, image_size=32, num_classes=10
    )
    params = {
        "images": golden.images,
        "logits": golden.arrays["teacher_logits"],
        "features": golden.arrays["teacher_features"],
    }
    return Distill(
        model=TRAINED["train_distillation"],
        settings=LossSettings(features=True),
        teacher=Recalls(teacher),
        teacher_params=lambda: params,
    )


def classification(golden):
    return Classify(model=TRAINED["train_classification"])


TASKS = {"train_distillation": distillation, "train_classification": classification}
SLOW_STEPS = (("train_classification", 2), ("train_distillation", 1), ("train_distillation", 2))


def samples_of(golden):
    """What `draw` draws, as the golden had it."""
    labels = golden.arrays.get("soft_labels", np.zeros((len(golden.images), 10), np.float32))
    samples = {"images": golden.images, "labels": labels}
    samples["widths"] = np.array(golden.cases["widths"])
    return samples, {"readout_tokens": np.array(golden.cases["readout_tokens_by_depth"])}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("train_classification", 1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_STEPS),
    ],
)
def test_losses_and_gradients_of_a_step(goldens, name, parts):
    golden = read(goldens / name)
    task = TASKS[name](golden)

    @jax.jit
    def step(params, constants, samples, shared):
        key = jax.random.key(0)
        return loss_and_gradients(task, params, {}, constants, samples, shared, key, parts)

    params = golden.params(task.model)
    metrics, gradients = step(params, task.constants(), *samples_of(golden))
    wanted = {key: v for key, v in golden.arrays.items() if key.startswith("loss.")}
    assert {f"loss.{key}" for key in metrics} - {"loss.loss"} == set(wanted) - {"loss.total"}
    for key, want in wanted.items():
        ours = metrics["loss" if key == "loss.total" else key.removeprefix("loss.")]
        np.testing.assert_allclose(ours, want, **LOSSES, err_msg=key)
    total = sum(wanted[key] for key in wanted if key != "loss.total")
    np.testing.assert_allclose(metrics["loss"], total, **LOSSES)
    assert_gradients(task.model, gradients, golden)


def test_a_whole_update_is_the_optimizer_applied_to_the_references_gradients(goldens, monkeypatch):
    """To 1e-4 of each parameter's largest step; clipped, so by the norm of all gradients too."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    golden = read(goldens / "train_classification")
    task, drawn = classification(golden), samples_of(golden)
    optimizer, clip = gradient_descent(0.5), 0.7

    class Drawn(type(task)):
        def draw(self, batch, key, step):
            return drawn

    same = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    mesh = make_mesh(MeshSettings())
    programs = make_programs(Drawn(**same), optimizer, mesh, seed=0, clip=clip, ema=0.9)
    state = programs.begin(golden.params(task.model))
    batch = {"image": np.zeros((len(golden.images), 32, 32, 3), np.uint8)}
    state, metrics = programs.update(state, task.constants(), batch, 1)

    before = golden.params(task.model)
    named = {k.removeprefix("grad:"): v for k, v in golden.arrays.items() if "grad:" in k}
    gradients, norm = clip_by_global_norm(ap.params_from_torch(task.model, named), clip)
    assert norm > clip
    updates, _ = optimizer.apply(gradients, optimizer.init(before), before)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-5)
    assert int(state.step) == 1

    def check(path, ours, ema, start, update):
        bar = GRADIENTS * np.abs(update).max() + 2e-7 * np.abs(start).max()
        assert np.abs(ours - (start + update)).max() <= bar, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(ours, ema)

    jax.tree_util.tree_map_with_path(check, state.params, state.ema, before, updates)


AS_THEY_ARE = ImageSettings(mean=(0.0,) * 3, std=(1 / 255,) * 3)
"""The goldens' images are normalised already."""
COMPUTED = {"kept": {}, "recomputed": {"remat": True}}


def dense_step(task, golden, batch, step=1000, parts=1):
    """Metrics and gradients by the trainer's own path, from a batch as the data gives it."""
    arrays = {"image": golden.images, **batch}
    return _dense_step(task, golden.params(task.model), arrays, step, parts)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _dense_step(task, params, batch, step, parts):
    samples, shared = task.draw(batch, jax.random.key(0), step)
    return loss_and_gradients(task, params, {}, {}, samples, shared, jax.random.key(1), parts)


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("computed", ["kept", pytest.param("recomputed", marks=pytest.mark.slow)])
def test_a_step_of_segmentation(goldens, computed, parts):
    golden = read(goldens / "train_segmentation")
    model = TRAINED["train_segmentation"].clone(**COMPUTED[computed])
    task = Segment(model=model, image_size=(32, 32), images=AS_THEY_ARE)
    batch = {"segmentation": golden.arrays["labels"].astype(np.int32)}
    assert (batch["segmentation"] == 255).any()
    metrics, gradients = dense_step(task, golden, batch, parts=parts)
    np.testing.assert_allclose(metrics["loss"], golden.arrays["loss.token"], **LOSSES)
    assert_gradients(model, gradients, golden)


@pytest.mark.slow
@pytest.mark.parametrize("computed", COMPUTED)
def test_a_step_of_depth(goldens, computed):
    golden = read(goldens / "train_depth")
    depth, model = golden.arrays["depth"][:, 0], depth_model(golden).clone(**COMPUTED[computed])
    settings = DenseSettings(reference_axes=True)
    task = Depth(model=model, image_size=(32, 32), settings=settings, images=AS_THEY_ARE)
    assert ((depth <= 0) | (depth > 10)).any()
    metrics, gradients = dense_step(task, golden, {"depth": depth})
    for name in ("sig", "grad"):
        np.testing.assert_allclose(metrics[name], golden.arrays[f"loss.{name}"], **LOSSES)
    total = golden.arrays["loss.sig"] + golden.arrays["loss.grad"]
    np.testing.assert_allclose(metrics["loss"], total, **LOSSES)
    assert_gradients(model, gradients, golden)
    for step, name in ((99, "sig_warmup"), (100, "sig")):
        metrics, _ = dense_step(task, golden, {"depth": depth}, step)
        np.testing.assert_allclose(metrics["sig"], golden.arrays[f"loss.{name}"], **LOSSES)
