"""A run's whole config, and the task it asks for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adaperceiver_jax.convert.hub import find_pretrained
from adaperceiver_jax.convert.timm import HUB, timm_model, timm_models
from adaperceiver_jax.data.mixing import MixingSettings
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.dense import (
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.params import init_params, scale_kernels
from adaperceiver_jax.models.vit import ViT, ViTConfig
from adaperceiver_jax.tasks.classify import Classify, Teacher
from adaperceiver_jax.tasks.dense import DenseSettings
from adaperceiver_jax.tasks.depth import Depth
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.images import ImageSettings
from adaperceiver_jax.tasks.once_for_all import LossSettings
from adaperceiver_jax.tasks.segment import Segment
from adaperceiver_jax.train.settings import Settings
from adaperceiver_jax.train.task import Task

log = logging.getLogger(__name__)

TASKS = ("distill", "classify", "teacher", "segment", "depth")
DENSE = ("segment", "depth")
MADE_UP = "made-up"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How models are computed; changes no meaning."""

    dtype: str = "bfloat16"
    """Of the matmuls; parameters and streams stay float32."""
    attention: str = "cut"
    remat: bool = True
    unroll: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Whom 'distill' learns from."""

    path: str = ""
    """Folder, hub id or timm name of a ViT; 'made-up' takes fresh weights of `config.vit`, to try a
    run."""
    seed: int = 0
    """Of made-up weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Everything `main.py` is told: the trainer's settings, the task and its model."""

    task: str = "distill"
    """'distill', 'classify', 'teacher' (trains `vit`), 'segment' or 'depth'."""
    model: AdaPerceiverConfig = AdaPerceiverConfig()
    vit: ViTConfig = ViTConfig()
    init_scale: float = 1.0
    """Factor on fresh kernels, of std 0.02: models of a few dozen channels need several."""
    compute: ComputeSettings = ComputeSettings()
    loss: LossSettings = LossSettings()
    mixing: MixingSettings = MixingSettings()
    images: ImageSettings = ImageSettings()
    teacher: TeacherSettings = TeacherSettings()
    dense: DenseSettings = DenseSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise ValueError(f"config.task={self.task!r}: must be one of {', '.join(TASKS)}")
        if self.compute.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"config.compute.dtype={self.compute.dtype!r}: must be 'float32' or 'bfloat16'"
            )
        trained = self.vit if self.trains_vit else self.model
        for name, side in zip(("image_size", "image_width"), self.data.size, strict=True):
            if side % trained.patch_size:
                raise ValueError(
                    f"config.data.{name}={side}: must be a multiple of the patch, "
                    f"{trained.patch_size}"
                )
        if self.task == "depth" and self.accumulate > 1:
            raise ValueError(
                f"config.accumulate={self.accumulate}: the loss of depth is one of the whole "
                "batch, no sum over its parts; take more devices, or a smaller batch"
            )
        if not self.trains_vit:
            for t, w, l in self.evaluation.sub_networks:
                try:
                    check_sub_network(self.model, t, w, l)
                except ValueError as error:
                    raise ValueError(f"config.evaluation.sub_networks: {error}") from error
        elif self.evaluation.sub_networks:
            raise ValueError(
                f"config.evaluation.sub_networks={self.evaluation.sub_networks}: a ViT has none"
            )

    @property
    def trains_vit(self) -> bool:
        """Whether it is `vit` that is trained or stood on, not `model`."""
        return self.task == "teacher" or (self.task in DENSE and self.dense.backbone == "vit")


def make_model(config: RunConfig) -> nn.Module:
    """What the run trains, with no weights."""
    compute = dataclasses.asdict(config.compute) | {"dtype": jnp.dtype(config.compute.dtype)}
    if config.task not in DENSE:
        if config.task != "teacher":
            return AdaPerceiver(config.model, **compute)
        del compute["attention"]
        return ViT(config.vit, **compute)
    d = config.dense
    vit = d.backbone == "vit"
    if vit and config.vit.num_classes is not None:
        raise ValueError(
            f"config.vit.num_classes={config.vit.num_classes}: a ViT under a dense head scores no "
            "images; set it to None"
        )
    common: dict[str, Any] = dict(
        backbone=config.vit if vit else config.model,
        class_token=d.class_token,
        mlp=d.mlp,
        head_drop=d.head_drop,
    )
    try:
        if config.task == "segment":
            names = ("num_classes", "head", "decoder_features", "decoder_depth")
            segmentation = SegmentationConfig(**common, **{n: getattr(d, n) for n in names})
            return SegmentationModel(segmentation, **compute)
        bounds: dict[str, Any] = dict(
            bins=d.bins, min_depth=d.min_depth, max_depth=config.data.max_depth
        )
        return DepthModel(DepthConfig(**common, **bounds), **compute)
    except ValueError as error:
        raise ValueError(f"config.dense and config.model: {error}") from error


def make_task(config: RunConfig) -> Task:
    """The task; loads the teacher."""
    if config.task in DENSE:
        check_unmixed(config.mixing)
    model: Any = make_model(config)
    if config.task == "teacher":
        return Teacher(
            model=model,
            mixing=config.mixing,
            images=config.images,
            init_scale=config.init_scale,
        )
    if config.task in DENSE:
        task = Segment if config.task == "segment" else Depth
        return task(
            model=model,
            image_size=config.data.size,
            settings=config.dense,
            images=config.images,
            evaluated=config.evaluation.sub_networks,
            init_scale=config.init_scale,
        )
    arguments: dict[str, Any] = dict(
        model=model,
        settings=config.loss,
        mixing=config.mixing,
        images=config.images,
        evaluated=config.evaluation.sub_networks,
        init_scale=config.init_scale,
    )
    if config.task == "classify":
        return Classify(**arguments)
    vit, params = load_teacher(config.teacher, config.vit, config.init_scale)
    warn_of_other_pixels(config.teacher.path, config.images)
    teacher = ViT(vit, dtype=jnp.dtype(config.compute.dtype))
    return Distill(**arguments, teacher=teacher, teacher_params=params)


def check_unmixed(mixing: MixingSettings) -> None:
    """ValueError where images would be mixed whose maps are not."""
    for field in dataclasses.fields(mixing):
        value = getattr(mixing, field.name)
        if value != field.default:
            raise ValueError(
                f"config.mixing.{field.name}={value}: label and depth maps are not mixed; leave "
                f"it at {field.default}"
            )


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
