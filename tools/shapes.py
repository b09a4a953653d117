"""Shapes that a run's programs take, from its config alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.convert.timm import HUB, timm_model, timm_models
from adaperceiver_jax.data.pipeline import BAD
from adaperceiver_jax.optim.trainable import split
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.tasks.pretrained import MADE_UP
from adaperceiver_jax.train.loop import check_batches, programs_of
from adaperceiver_jax.train.settings import make_plan
from adaperceiver_jax.train.sharding import (
    batch_sharding,
    constant_shardings,
    make_mesh,
    placed,
)
from adaperceiver_jax.train.step import Programs
from adaperceiver_jax.train.task import Task

IMAGES = 1_281_167
"""An epoch's (ImageNet-1k has as many): durations are numbers in a program and change no shape."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One update of a run, as `train` would compile it: shapes carry their shardings."""

    task: Task
    programs: Programs
    constants: Any
    """Shapes, as in the next two."""
    gradients: tuple[Any, ...]
    """Arguments of `programs.gradients`."""
    apply: tuple[Any, ...]
    """Arguments of `programs.apply`."""


def make_step(config: RunConfig, devices: Sequence[Any] | None = None) -> Step:
    """The update of a run on these devices (None: those there are), which may be ones to compile
    for; ValueError for what the trainer would refuse. Reads no images, and no teacher of timm's."""
    config = teacher_made_up(config)
    mesh = make_mesh(config.mesh, devices)
    check_batches(config, mesh)
    task = make_task(config)
    _, programs = programs_of(config, task, mesh, make_plan(config, IMAGES))
    shapes = jax.eval_shape(task.constants)
    shardings = constant_shardings(shapes, mesh, config.mesh.rules)
    constants = placed(shapes, shardings)
    batch = placed(batch_shapes(config, task), batch_sharding(mesh))
    state = programs.state.replace(upcoming={})  # type: ignore[attr-defined]
    trained, _ = split(state.params, config.train_only)
    first = state.params, state.opt_state, state.step, {**constants, **state.memory}, batch
    return Step(task, programs, constants, first, (state, trained))


def teacher_made_up(config: RunConfig) -> RunConfig:
    """The same run, whose teacher, if timm's, has fresh weights: nothing is fetched."""
    name = config.teacher.path.removeprefix(HUB)
    if config.task != "distill" or name not in timm_models():
        return config
    teacher = dataclasses.replace(config.teacher, path=MADE_UP)
    return dataclasses.replace(config, teacher=teacher, vit=timm_model(name).config)


def batch_shapes(config: RunConfig, task: Task) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, over all processes."""
    size = config.data.size
    kinds: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((*size, 3), np.uint8),
        "label": ((), np.int32),
        "segmentation": (size, np.uint8),
        "depth": (size, np.float32),
    }
    kinds = {name: kinds[name] for name in task.inputs}
    if "depth" in kinds:
        kinds["valid"] = (size, np.bool_)
    if config.data.source != "scenes" and config.data.bad_images > 0:
        kinds[BAD] = ((), np.int32)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in kinds.items()
    }
