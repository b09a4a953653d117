"""The models that a run finds rather than trains: a distillation's teacher, a policy's model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from adaperceiver_jax.convert.hub import Pretrained, find_pretrained
from adaperceiver_jax.convert.timm import HUB, timm_model, timm_models
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.params import init_params, scale_kernels
from adaperceiver_jax.models.vit import ViT, ViTConfig
from adaperceiver_jax.tasks.objective import ImageSettings
from adaperceiver_jax.train.checkpoints import FOLDER
from adaperceiver_jax.train.workdir import MODEL

log = logging.getLogger(__name__)

MADE_UP = "made-up"
TEACHER_NEEDED = (
    "distillation needs a teacher. Give a ViT's folder or hub id, or the folder of a finished "
    "'teacher' run, train without one (configs/scratch.py), or try the run with "
    "--config.teacher.path=made-up"
)
MODEL_NEEDED = (
    "a policy chooses for a trained AdaPerceiver. Give a finished run's folder, a hub folder or "
    "id, or try the run with --config.policy.path=made-up"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The teacher that 'distill' learns from."""

    path: str = ""
    """Folder, hub id or timm name of a ViT, or a finished run's folder; 'made-up' takes fresh
    weights of `config.vit`, to try a run."""
    seed: int = 0
    """Seed of made-up weights."""


def warn_of_other_pixels(path: str, images: ImageSettings) -> None:
    """Says so where a timm teacher was trained on images normalised otherwise than the run's."""
    name = path.removeprefix(HUB)
    if name not in timm_models():
        return
    wanted = timm_model(name).preprocessing
    if (wanted.mean, wanted.std) != (tuple(images.mean), tuple(images.std)):
        log.warning(
            "config.images normalises with mean %s, std %s; the teacher %s was trained with mean "
            "%s, std %s, and sees the student's images",
            *(images.mean, images.std, name, wanted.mean, wanted.std),
        )


def find_teacher(
    settings: TeacherSettings, vit: ViTConfig, init_scale: float
) -> tuple[ViTConfig, Callable[[], Any]]:
    """A teacher's config, and a function that gives its parameters."""
    fresh = _fresh(ViT(vit), settings.seed, init_scale)
    return _find("teacher", settings.path, fresh, TEACHER_NEEDED)


def find_frozen(
    path: str, made_up: AdaPerceiverConfig, init_scale: float
) -> tuple[AdaPerceiverConfig, Callable[[], Any]]:
    """The config of the AdaPerceiver that a policy chooses for, and a function that gives its
    parameters."""
    return _find("policy", path, _fresh(AdaPerceiver(made_up), 0, init_scale), MODEL_NEEDED)


def _fresh(model: nn.Module, seed: int, init_scale: float) -> Pretrained:
    key = jax.random.key(seed)
    return Pretrained(model, lambda: scale_kernels(init_params(model, key), init_scale))


def _find(section: str, path: str, fresh: Pretrained, needed: str) -> tuple[Any, Callable]:
    """The model of `config.SECTION.path`, of the same class as the fresh one; ValueError says what
    to give instead."""
    where, kind = f"config.{section}.path={path!r}", type(fresh.model)
    if not path:
        raise ValueError(f"{where}: {needed}")
    if path == MADE_UP:
        found = fresh
    else:
        folder = Path(path)
        is_run = (folder / FOLDER).is_dir()
        if is_run and not (folder / MODEL).is_dir():
            raise ValueError(
                f"{where}: a run that has not left its {MODEL}/ yet. Let it end, or make a folder "
                "of its newest checkpoint with tools/convert.py, and give that"
            )
        try:
            found = find_pretrained(folder / MODEL if is_run else path)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not isinstance(found.model, kind):
        raise ValueError(f"{where}: holds no {kind.__name__} but: {type(found.model).__name__}")
    model: Any = found.model
    return model.config, found.read
