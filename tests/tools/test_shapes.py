"""A run's programs from its config alone: what they take is what the trainer gives them."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from adaperceiver_jax.convert import hub
from adaperceiver_jax.convert.timm import timm_model
from adaperceiver_jax.tasks.make import make_task
from adaperceiver_jax.train.feed import Feed
from tests.train.small import PLAIN, run_config
from tools.shapes import batch_shapes, make_step, teacher_made_up

TEACHER = "vit_tiny_patch16_224.augreg_in21k"


@pytest.mark.parametrize("name", ["scratch", "ade20k", "nyuv2"])
def test_batches_are_those_that_the_run_reads(name):
    config = run_config(name)
    task = make_task(config)
    with contextlib.closing(Feed(config, task).training(0, 1)) as batches:
        batch = next(batches)
    assert {name: (x.shape, x.dtype) for name, x in batch_shapes(config, task).items()} == {
        name: (np.shape(x), np.asarray(x).dtype) for name, x in batch.items()
    }


def test_images_from_a_disk_come_with_a_count_of_those_that_did_not_decode():
    config = run_config("scratch", {"data.source": "folder:somewhere"})
    shapes = batch_shapes(config, make_task(config))
    assert (shapes["bad"].shape, shapes["bad"].dtype) == ((8,), np.int32)


@pytest.mark.parametrize("name", ["stage3_width", "policy_in1k"])
def test_programs_take_the_shapes(name):
    """Traced, which compiles nothing, on 4 devices."""
    changes = {**PLAIN, "mesh.fsdp": 2}
    step = make_step(run_config(name, changes), jax.devices()[:4])
    gradients, opt_state, _ = jax.eval_shape(step.programs.gradients, *step.gradients)
    state, given = step.apply
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), gradients, given)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), opt_state, state.opt_state)
    assert {x.sharding.mesh.size for x in jax.tree.leaves((step.gradients, step.apply))} == {4}


def test_a_teacher_of_timms_is_not_fetched(monkeypatch):
    def fetched(*_):
        raise AssertionError("was looked for")

    monkeypatch.setattr(hub, "find_folder", fetched)
    config = run_config("stage1_tokens")
    vit = dataclasses.replace(config.teacher, path=f"timm/{TEACHER}")
    config = teacher_made_up(dataclasses.replace(config, teacher=vit))
    assert (config.vit, config.teacher.path) == (timm_model(TEACHER).config, "made-up")
    assert teacher_made_up(config) == config
    # A run that does not distil keeps its own ViT.
    alone = dataclasses.replace(run_config("scratch"), task="teacher", teacher=vit)
    assert teacher_made_up(alone) == alone
