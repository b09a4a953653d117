"""A run's whole config, from a file or a run's folder, and the task it asks for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from adaperceiver_jax.data.mixing import MixingSettings
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.dense import (
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.vit import ViT, ViTConfig
from adaperceiver_jax.tasks.classify import Classify, Teacher
from adaperceiver_jax.tasks.dense import DenseSettings
from adaperceiver_jax.tasks.depth import Depth
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.objective import ImageSettings
from adaperceiver_jax.tasks.once_for_all import LossSettings
from adaperceiver_jax.tasks.policy import (
    PolicySettings,
    Regress,
    Reinforce,
    policy_network,
)
from adaperceiver_jax.tasks.pretrained import (
    MADE_UP,
    TeacherSettings,
    find_frozen,
    find_teacher,
    warn_of_other_pixels,
)
from adaperceiver_jax.tasks.segment import Segment
from adaperceiver_jax.train.settings import Settings, from_config
from adaperceiver_jax.train.task import Task
from adaperceiver_jax.train.workdir import CONFIG

TASKS = ("distill", "classify", "teacher", "segment", "depth", "policy")
DENSE = ("segment", "depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How models are computed; changes no meaning."""

    dtype: str = "bfloat16"
    """Dtype of the matmuls; parameters and streams stay float32."""
    attention: str = "cut"
    remat: bool = True
    """Keep of blocks what linear layers gave alone; the backward pass computes the rest again."""
    unroll: int = 1
    """Blocks a loop iteration. With all of them no loop is left, and nothing is computed again in
    the backward pass, whatever `remat` says: XLA finds it computed already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Everything `main.py` is told: the trainer's settings, the task and its model."""

    task: str = "distill"
    """'distill', 'classify', 'teacher' (trains `vit`), 'segment', 'depth', or 'policy' (trains what
    chooses budgets for the model of `policy.path`)."""
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
    policy: PolicySettings = PolicySettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise ValueError(f"config.task={self.task!r}: must be one of {', '.join(TASKS)}")
        if self.compute.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"config.compute.dtype={self.compute.dtype!r}: must be 'float32' or 'bfloat16'"
            )
        if self.mesh.gradients == "bfloat16" != self.compute.dtype:
            raise ValueError(
                "config.mesh.gradients='bfloat16' with config.compute.dtype="
                f"{self.compute.dtype!r}: gradients would be summed in less than they are computed "
                "in; set both to 'bfloat16'"
            )
        trained = self.vit if self.trains_vit else self.model
        own = self.task == "policy" and self.policy.path != MADE_UP  # its path says what it is
        for name, side in zip(("image_size", "image_width"), self.data.size, strict=True):
            if not own and side % trained.patch_size:
                raise ValueError(
                    f"config.data.{name}={side}: must be a multiple of the patch, "
                    f"{trained.patch_size}"
                )
        if self.task == "depth" and self.accumulate > 1:
            raise ValueError(
                f"config.accumulate={self.accumulate}: the loss of depth is one of the whole "
                "batch, no sum over its parts; take more devices, or a smaller batch"
            )
        sub_networks, where = self.evaluation.sub_networks, "config.evaluation.sub_networks"
        if sub_networks and (self.task == "policy" or self.trains_vit):
            what = "a policy" if self.task == "policy" else "a ViT"
            raise ValueError(f"{where}={sub_networks}: {what} has none; leave it at ()")
        for sub_network in sub_networks:
            try:
                check_sub_network(self.model, *sub_network)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    @property
    def trains_vit(self) -> bool:
        """True where `vit` is trained or stood on, not `model`."""
        return self.task == "teacher" or (self.task in DENSE and self.dense.backbone == "vit")


def read_config(text: str) -> RunConfig:
    """'configs/NAME.py:key=value' -> the run's config; ValueError for what is wrong with it."""
    name, _, argument = text.partition(":")
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--config={text}: there is no such file; give one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    root = str(path.parent.parent)  # configs import each other
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "get_config"):
            return from_config(RunConfig, module.get_config(argument).to_dict())
    except Exception as error:
        raise ValueError(f"--config={text}: {_mistake(error, path)}") from error
    raise ValueError(f"--config={text}: is no config, since it has no get_config")


def _mistake(error: Exception, path: Path) -> str:
    """Says what is wrong with a config, and in which line, where its code has a mistake."""
    if isinstance(error, ValueError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    said = str(error)
    if isinstance(error, SyntaxError):
        said, lines = error.msg, [error.lineno]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {said}"


def run_config(workdir: str | os.PathLike) -> RunConfig:
    """The config of the run in a folder; ValueError if there is none."""
    try:
        return from_config(RunConfig, json.loads((Path(workdir) / CONFIG).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{workdir}: not a run's folder: {CONFIG}: {error}") from error


def make_model(config: RunConfig) -> nn.Module:
    """The model that the run trains, without weights."""
    compute = dataclasses.asdict(config.compute) | {"dtype": jnp.dtype(config.compute.dtype)}
    if config.task == "policy":
        frozen, _ = find_frozen(config.policy.path, config.model, config.init_scale)
        return policy_network(config.policy, frozen, compute["dtype"])
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
    if config.task == "policy":
        return make_policy(config)
    if config.task in DENSE:
        check_unmixed(config.mixing, "label and depth maps are not mixed")
    model: Any = make_model(config)
    common: dict[str, Any] = dict(model=model, images=config.images, init_scale=config.init_scale)
    if config.task == "teacher":
        return Teacher(**common, mixing=config.mixing)
    common["evaluated"] = config.evaluation.sub_networks
    if config.task in DENSE:
        task = Segment if config.task == "segment" else Depth
        return task(**common, image_size=config.data.size, settings=config.dense)
    common |= dict(settings=config.loss, mixing=config.mixing)
    if config.task == "classify":
        return Classify(**common)
    vit, params = find_teacher(config.teacher, config.vit, config.init_scale)
    warn_of_other_pixels(config.teacher.path, config.images)
    teacher = ViT(vit, dtype=jnp.dtype(config.compute.dtype))
    return Distill(**common, teacher=teacher, teacher_params=params)


def make_policy(config: RunConfig) -> Reinforce | Regress:
    """The task 'policy', of a run that trains one."""
    settings = config.policy
    check_unmixed(config.mixing, "a budget is judged by each image's own label")
    chosen_for, read = find_frozen(settings.path, config.model, config.init_scale)
    dtype = jnp.dtype(config.compute.dtype)
    frozen = AdaPerceiver(chosen_for, dtype=dtype, attention=config.compute.attention)
    network = policy_network(settings, chosen_for, dtype)
    side, patch = chosen_for.image_size, chosen_for.patch_size
    if settings.looks_at == "patches" and config.data.size != (side, side):
        raise ValueError(
            f"config.data.image_size={config.data.size}: a policy that looks at patches takes as "
            f"many as the model was trained with; set it to {side} and image_width to 0"
        )
    if any(length % patch for length in config.data.size):
        raise ValueError(
            f"config.data.image_size={config.data.size}: must be multiples of the patch, {patch}"
        )
    task = Reinforce if settings.learner == "reinforce" else Regress
    return task(
        model=network,
        frozen=frozen,
        frozen_params=read,
        settings=settings,
        image_size=config.data.size,
        images=config.images,
        init_scale=config.init_scale,
    )


def check_unmixed(mixing: MixingSettings, why: str) -> None:
    """ValueError where images would be mixed that must not be."""
    for field in dataclasses.fields(mixing):
        value = getattr(mixing, field.name)
        if value != field.default:
            raise ValueError(
                f"config.mixing.{field.name}={value}: {why}; leave it at {field.default}"
            )
