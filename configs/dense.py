"""Parts that the dense configs share: recipes of ADE20K and NYUv2, and small runs on scenes."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from adaperceiver_jax.convert.timm import timm_model
from adaperceiver_jax.data.scenes import CLASSES
from configs import common

VITS = {
    "b": "vit_base_patch16_clip_224.laion2b_ft_in12k",
    "l": "vit_large_patch14_clip_224.laion2b_ft_in12k",
    "h": "vit_huge_patch14_clip_224.laion2b_ft_in12k",
}
"""The baselines by timm's names."""


def _fine_tuning(task: str, steps: int) -> ConfigDict:
    """Batch and schedule of both tasks, whole images, nothing mixed."""
    config = common.paper()
    config.task = task
    config.batch_size = 16
    config.length = f"{steps} steps"
    config.ema = 0.9995
    config.augment.update(crop=(), rand_augment=0)
    config.mixing.mixup = 0.0
    config.optimizer.weight_decay = 0.1
    config.schedule.update(name="poly", power=1.0, warmup="1500 steps", min_lr=1e-6)
    config.evaluation.update(every="2%", batch_size=16)
    return config


def ade20k() -> ConfigDict:
    """Images, optimizer and head of segmentation (paper D.3)."""
    config = _fine_tuning("segment", 50_530)
    config.data.update(source="tfds:scene_parse150", image_size=518, zero_is_ignored=True)
    config.augment.update(flip=False, jitter=(0.25, 0.25, 0.25, 0.2))
    config.optimizer.update(lr=5e-4, precondition_frequency=30)
    config.dense.update(num_classes=150, head_drop=0.25)
    return config


def nyuv2() -> ConfigDict:
    """Images and optimizer of depth (paper D.4)."""
    config = _fine_tuning("depth", 47_584)
    config.data.update(source="tfds:nyu_depth_v2", image_size=448, image_width=602)
    config.augment.update(flip=True, rotation=2.5, jitter=(0.25, 0.25, 0.25, 0.1))
    config.optimizer.update(name="nadamw", lr=1e-4)
    return config


def on_adaperceiver(config: ConfigDict) -> None:
    """On the feature-distilled model: write head, output tokens, output adapter and head are
    trained."""
    config.init_from = "runs/features"
    config.init_skip = ("head/.*",)
    config.train_only = (
        "backbone/(write_head|output_latents|output_adapter)/.*",
        "head/.*",
    )
    config.teacher.path = ""
    config.model.update(num_classes=None, output_feat_dim=1280, use_output_ffn=True)
    config.evaluation.sub_networks = ((128, 832, 21), (32, 832, 21), (256, 416, 21), (256, 832, 7))


def on_vit(config: ConfigDict, name: str) -> None:
    """On a frozen ViT: an MLP over its tokens, the class token joined to each, and the head."""
    model = timm_model(VITS[name])
    config.dense.update(backbone="vit", class_token=True, mlp=True)
    config.vit.update(dataclasses.asdict(model.config))
    config.vit.num_classes = None
    config.init_from = f"timm/{VITS[name]}"
    config.init_skip = ("head/.*", "mlp/.*")
    config.train_only = ("head/.*", "mlp/.*")
    config.teacher.path = ""
    config.images.update(mean=model.preprocessing.mean, std=model.preprocessing.std)
    config.evaluation.sub_networks = ()


def tiny(config: ConfigDict) -> None:
    """A tiny model with fresh weights on rendered images: 64 output tokens, at most 16 latents, or
    32 in training, in two or three minutes on 2 cores."""
    classes = config.model.num_classes
    common.tiny(config)
    config.model.num_classes, config.vit.num_classes = classes, None
    config.teacher.path = ""
    config.length = "1000 steps"
    config.data.update(
        train_count=4096,
        validation_count=512,
        image_width=0,
        zero_is_ignored=False,
        difficulty=0.15,
    )
    config.augment.update(rotation=0.0, jitter=(), flip=True)
    config.init_skip = ()
    config.train_only = ()
    config.dense.update(
        num_classes=len(CLASSES) + 1,  # the background is one
        head_drop=0.0,
        bins=32,
        decoder_features=32,
        warm_up=20,
    )
    if config.dense.token_granularities:
        config.dense.token_granularities = (2, 4, 8, 16, 32)
    config.model.head_drop = 0.0
    config.model.layer_scale = None
    config.model.process_token_init = "norm_randn"
    config.ema = 0.98
    config.optimizer.update(lr=2e-3, weight_decay=0.003)
    config.evaluation.update(every="100%", batch_size=128)
    config.log_every = 100
    config.evaluation.sub_networks = ((2, 48, 4), (32, 48, 4), (16, 24, 4), (16, 48, 2))
    if config.dense.backbone == "vit":
        config.evaluation.sub_networks = ()
