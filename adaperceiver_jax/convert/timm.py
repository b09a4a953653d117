"""timm's ViTs by name: sizes, classes, pre-processing."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

from adaperceiver_jax.data.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing
from adaperceiver_jax.models.vit import ViTConfig

HUB = "timm/"
"""Prefix of the hub id, before the name."""

_NORMALISATION = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": (CLIP_MEAN, CLIP_STD),
}
_WIDTH_DEPTH_HEADS = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "so150m": (896, 18, 14),
    "so150m2": (832, 21, 13),
}
_NAME = re.compile(
    r"(?P<family>vit|deit|deit3)_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)"
    r"(_reg(?P<registers>\d+)_gap)?(?P<clip>_clip)?_(?P<image>\d+)"
)
_CLASSES = {"in1k": 1000, "in12k": 11821, "in21k": 21843}
"""Classes of the last data set in the weights' name; orig_in21k has no head."""
# Architecture: weights and the crop's part of the resized side. Normalisation is ImageNet's for
# DeiT, CLIP's for CLIP, else half, where nothing else is said.
_MODELS = """
deit3_base_patch16_224: fb_in1k 0.9, fb_in22k_ft_in1k 1.0
deit3_base_patch16_384: fb_in1k 1.0, fb_in22k_ft_in1k 1.0
deit3_huge_patch14_224: fb_in1k 0.9, fb_in22k_ft_in1k 1.0
deit3_large_patch16_224: fb_in1k 0.9, fb_in22k_ft_in1k 1.0
deit3_large_patch16_384: fb_in1k 1.0, fb_in22k_ft_in1k 1.0
deit3_medium_patch16_224: fb_in1k 0.9, fb_in22k_ft_in1k 1.0
deit3_small_patch16_224: fb_in1k 0.9, fb_in22k_ft_in1k 1.0
deit3_small_patch16_384: fb_in1k 1.0, fb_in22k_ft_in1k 1.0
deit_base_patch16_224: fb_in1k 0.9
deit_base_patch16_384: fb_in1k 1.0
deit_small_patch16_224: fb_in1k 0.9
deit_tiny_patch16_224: fb_in1k 0.9
vit_base_patch16_224: augreg2_in21k_ft_in1k 0.9, augreg_in1k 0.9, augreg_in21k 0.9,
    augreg_in21k_ft_in1k 0.9, orig_in21k 0.9, orig_in21k_ft_in1k 0.9, sam_in1k 0.9
vit_base_patch16_384: augreg_in1k 1.0, augreg_in21k_ft_in1k 1.0, orig_in21k_ft_in1k 1.0
vit_base_patch16_clip_224: laion2b_ft_in12k 0.9, laion2b_ft_in12k_in1k 0.95, laion2b_ft_in1k 1.0,
    openai_ft_in12k 0.9, openai_ft_in12k_in1k 0.95, openai_ft_in1k 0.9
vit_base_patch16_clip_384: laion2b_ft_in12k_in1k 1.0 squash, laion2b_ft_in1k 1.0 squash,
    openai_ft_in12k_in1k 0.95 squash, openai_ft_in1k 1.0 squash
vit_base_patch32_224: augreg_in1k 0.9, augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9, orig_in21k 0.9,
    sam_in1k 0.9
vit_base_patch32_384: augreg_in1k 1.0, augreg_in21k_ft_in1k 1.0
vit_base_patch32_clip_224: laion2b_ft_in12k_in1k 0.9, laion2b_ft_in1k 0.9, openai_ft_in1k 0.9
vit_base_patch32_clip_384: laion2b_ft_in12k_in1k 1.0, openai_ft_in12k_in1k 0.95 squash
vit_base_patch32_clip_448: laion2b_ft_in12k_in1k 1.0
vit_base_patch8_224: augreg2_in21k_ft_in1k 0.9, augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9
vit_huge_patch14_224: orig_in21k 0.9
vit_huge_patch14_clip_224: laion2b_ft_in12k 1.0, laion2b_ft_in12k_in1k 1.0, laion2b_ft_in1k 1.0
vit_huge_patch14_clip_336: laion2b_ft_in12k_in1k 1.0 squash
vit_large_patch14_clip_224: laion2b_ft_in12k 1.0 half, laion2b_ft_in12k_in1k 1.0 half,
    laion2b_ft_in1k 1.0 half, openai_ft_in12k 1.0, openai_ft_in12k_in1k 1.0, openai_ft_in1k 1.0
vit_large_patch14_clip_336: laion2b_ft_in12k_in1k 1.0 half squash, laion2b_ft_in1k 1.0 half squash,
    openai_ft_in12k_in1k 1.0 squash
vit_large_patch16_224: augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9, orig_in21k 0.9
vit_large_patch16_384: augreg_in21k_ft_in1k 1.0
vit_large_patch32_224: orig_in21k 0.9
vit_large_patch32_384: orig_in21k_ft_in1k 1.0
vit_small_patch16_224: augreg_in1k 0.9, augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9
vit_small_patch16_384: augreg_in1k 1.0, augreg_in21k_ft_in1k 1.0
vit_small_patch32_224: augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9
vit_small_patch32_384: augreg_in21k_ft_in1k 1.0
vit_so150m2_patch16_reg1_gap_256: sbb_e200_in12k 1.0, sbb_e200_in12k_ft_in1k 1.0
vit_so150m2_patch16_reg1_gap_384: sbb_e200_in12k_ft_in1k 1.0
vit_so150m2_patch16_reg1_gap_448: sbb_e200_in12k_ft_in1k 1.0 squash
vit_so150m_patch16_reg4_gap_256: sbb_e250_in12k 0.95, sbb_e250_in12k_ft_in1k 0.95
vit_so150m_patch16_reg4_gap_384: sbb_e250_in12k_ft_in1k 1.0
vit_tiny_patch16_224: augreg_in21k 0.9, augreg_in21k_ft_in1k 0.9
vit_tiny_patch16_384: augreg_in21k_ft_in1k 1.0
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A ViT that timm publishes weights of."""

    name: str
    """Architecture, a dot, what it was trained on."""
    config: ViTConfig
    preprocessing: Preprocessing

    @property
    def hub_id(self) -> str:
        return HUB + self.name


def _config(architecture: str, num_classes: int) -> ViTConfig:
    found = _NAME.fullmatch(architecture)
    assert found is not None, architecture
    width, depth, heads = _WIDTH_DEPTH_HEADS[found["size"]]
    variant: dict[str, Any] = {}
    if found["clip"]:
        variant = dict(pre_norm=True, norm_epsilon=1e-5)
    elif found["family"] == "deit3":
        variant = dict(no_embed_class=True, layer_scale=1e-6)
    elif found["size"] == "so150m":
        variant = dict(mlp_ratio=2.572, fc_norm=False)
    elif found["size"] == "so150m2":
        variant = dict(mlp_ratio=34 / 13, layer_scale=1e-5, qkv_bias=False)
    if found["registers"]:
        variant |= dict(class_token=False, reg_tokens=int(found["registers"]), global_pool="avg")
    return ViTConfig(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        image_size=int(found["image"]),
        patch_size=int(found["patch"]),
        num_classes=num_classes or None,
        **variant,
    )


@functools.cache
def _registry() -> Mapping[str, TimmModel]:
    models = {}
    for line in _MODELS.replace(",\n", ",").strip().splitlines():
        architecture, _, weights = line.partition(": ")
        family = "imagenet" if architecture.startswith("deit") else "half"
        family = "clip" if "_clip_" in architecture else family
        for entry in weights.split(","):
            tag, crop, *more = entry.split()
            name = f"{architecture}.{tag}"
            classes = 0 if tag == "orig_in21k" else _CLASSES[tag.rpartition("_")[2]]
            config = _config(architecture, classes)
            mean, std = _NORMALISATION["half" if "half" in more else family]
            preprocessing = Preprocessing(
                image_size=config.image_size,
                crop=float(crop),
                squash="squash" in more,
                interpolation="bicubic",
                mean=mean,
                std=std,
            )
            models[name] = TimmModel(name=name, config=config, preprocessing=preprocessing)
    return models


def timm_models() -> list[str]:
    """The names that `timm_model` knows, in alphabetical order."""
    return sorted(_registry())


def timm_model(name: str) -> TimmModel:
    """A ViT by its timm name, 'vit_base_patch16_224.augreg_in21k'; 'timm/' may stand before it.

    The weights come with `from_pretrained`, by the same name.
    """
    models = _registry()
    name = name.removeprefix(HUB)
    if name not in models:
        near = difflib.get_close_matches(name, models, 3, 0.5)
        meant = f"did you mean {' or '.join(near)}?"
        hint = meant if near else "see adaperceiver_jax.timm_models()"
        raise ValueError(
            f"{name!r} is not a timm ViT known here (ViT, DeiT, DeiT-3, SoViT-150M and CLIP are); "
            f"{hint}"
        )
    return models[name]


def config_from_timm(values: Mapping[str, Any]) -> ViTConfig:
    """The config of a folder whose config.json timm wrote: `architecture`, `num_classes`."""
    architecture = values["architecture"]
    known = sorted({name.partition(".")[0] for name in _registry()})
    if architecture not in known or values.get("model_args"):
        what = f" with model_args={values['model_args']}" if values.get("model_args") else ""
        raise ValueError(
            f"timm architecture {architecture!r}{what}: not known here; known are "
            f"{', '.join(known)}"
        )
    return _config(architecture, int(values["num_classes"]))
