"""The models that a run finds rather than trains: a distillation's teacher, a policy's model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from adaperceiver_jax.convert.hub import find_pretrained
from adaperceiver_jax.convert.timm import HUB, timm_model, timm_models
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.params import init_params, scale_kernels
from adaperceiver_jax.models.vit import ViT, ViTConfig
from adaperceiver_jax.tasks.images import ImageSettings
from adaperceiver_jax.train.checkpoints import FOLDER
from adaperceiver_jax.train.loop import MODEL

log = logging.getLogger(__name__)

MADE_UP = "made-up"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Whom 'distill' learns from."""

    path: str = ""
    """Folder, hub id or timm name of a ViT; 'made-up' takes fresh weights of `config.vit`, to try a
    run."""
    seed: int = 0
    """Of made-up weights."""


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


def load_teacher(
    settings: TeacherSettings, vit: ViTConfig, init_scale: float
) -> tuple[ViTConfig, Callable[[], Any]]:
    """What the teacher is, and what gives its parameters; ValueError says what to give instead."""
    if not settings.path:
        raise ValueError(
            "config.teacher.path='': distillation needs a teacher. Give a ViT's folder or hub id "
            "(a 'teacher' run leaves one in its folder under model/), train without one "
            "(configs/scratch.py), or try the run with --config.teacher.path=made-up"
        )
    if settings.path == MADE_UP:
        key = settings.seed
        return vit, lambda: scale_kernels(init_params(ViT(vit), jax.random.key(key)), init_scale)
    found = find_pretrained(settings.path)
    if not isinstance(found.model, ViT):
        raise ValueError(
            f"config.teacher.path={settings.path!r}: holds no ViT but: {type(found.model).__name__}"
        )
    return found.model.config, found.read


def find_frozen(
    source: str, made_up: AdaPerceiverConfig, init_scale: float
) -> tuple[AdaPerceiverConfig, Callable[[], Any]]:
    """Of `config.policy.path`, what the AdaPerceiver is that a policy chooses for, and what gives
    its parameters; ValueError says what to give instead."""
    path = Path(source)
    where = f"config.policy.path={source!r}"
    if not source:
        raise ValueError(
            f"{where}: a policy chooses for a trained AdaPerceiver. Give a finished run's folder, "
            "a hub folder or id, or try the run with --config.policy.path=made-up"
        )
    if source == MADE_UP:
        model = AdaPerceiver(made_up)
        key = jax.random.key(0)
        return made_up, lambda: scale_kernels(init_params(model, key), init_scale)
    if (path / FOLDER).is_dir() and not (path / MODEL).is_dir():
        raise ValueError(
            f"{where}: a run that has not left its {MODEL}/ yet. Let it end, or make a folder of "
            "its newest checkpoint with tools/convert.py, and give that"
        )
    try:
        found = find_pretrained(path / MODEL if (path / FOLDER).is_dir() else source)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(found.model, AdaPerceiver):
        raise ValueError(f"{where}: holds no AdaPerceiver but: {type(found.model).__name__}")
    return found.model.config, found.read
