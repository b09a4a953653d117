"""A model as `config.json` says it, and what of it the reference can say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from adaperceiver_jax.convert.files import naming
from adaperceiver_jax.convert.timm import config_from_timm
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.dense import (
    DenseModel,
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.policy import PeekConfig, PeekNetwork, PolicyConfig, PolicyNetwork
from adaperceiver_jax.models.vit import ViT, ViTConfig

# Ours -> the reference's constructor. Fields of the same name are left out.
_HUB_KEYS = {
    "token_granularities": "mask_token_grans",
    "widths": "mat_dims",
    "image_size": "img_size",
    "layer_scale": "ls_init_values",
}
# What the reference's constructors do not know: written only where it says something.
_OPTIONAL = ("max_width", "rope_scale", "fourier_bands", "num_classes", "output_feat_dim")
# What dense models did not always have: likewise, so that older folders are as they were.
_DECODER = ("decoder_features", "decoder_depth")
_DENSE_OPTIONAL = ("class_token", "mlp", "head", *_DECODER)
# Models the reference has no hub format for say in config.json which one they are.
_KINDS: dict[str, tuple[type[nn.Module], type]] = {
    "SegmentationModel": (SegmentationModel, SegmentationConfig),
    "DepthModel": (DepthModel, DepthConfig),
    "ViT": (ViT, ViTConfig),
    "PolicyNetwork": (PolicyNetwork, PolicyConfig),
    "PeekNetwork": (PeekNetwork, PeekConfig),
}
_KIND_KEY = "model"


def _from_hub_config(values: Mapping[str, Any]) -> AdaPerceiverConfig:
    ours = {hub: name for name, hub in _HUB_KEYS.items()}
    given = {ours.get(key, key): value for key, value in values.items()}
    names = _names(AdaPerceiverConfig)
    unknown = sorted(key for key in values if ours.get(key, key) not in names)
    missing = sorted(_HUB_KEYS.get(name, name) for name in names - set(given) - set(_OPTIONAL))
    if unknown or missing:
        raise ValueError(
            f"not an AdaPerceiver's config: unknown keys {unknown}, missing keys {missing}"
        )
    return AdaPerceiverConfig(**{"num_classes": None, **given})


def config_to_dict(model: nn.Module) -> dict[str, Any]:
    """The content of `config.json` for a model of the package."""
    if isinstance(model, AdaPerceiver):
        return {
            _HUB_KEYS.get(name, name): value
            for name, value in vars(model.config).items()
            if name not in _OPTIONAL or value is not None
        }
    kind = type(model).__name__
    if kind not in _KINDS:
        raise ValueError(f"model={kind}: not a model of this package")
    values = {_KIND_KEY: kind, **vars(model.config)}
    if isinstance(model, DenseModel):
        values["backbone"] = config_to_dict(_network(model.config.backbone))
        silent = set(_DENSE_OPTIONAL)
        if values.get("head") == "segmenter":
            silent -= set(_DECODER)
        usual = type(model.config)
        values = {k: v for k, v in values.items() if k not in silent or v != getattr(usual, k)}
    return values


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _network(config: AdaPerceiverConfig | ViTConfig) -> AdaPerceiver | ViT:
    return ViT(config) if isinstance(config, ViTConfig) else AdaPerceiver(config)


def model_from_dict(values: Mapping[str, Any]) -> nn.Module:
    """The model that `config.json` describes; timm's describe a ViT."""
    values = dict(values)
    if "architecture" in values:
        return ViT(config_from_timm(values))
    kind = values.pop(_KIND_KEY, None)
    if kind is None:
        return AdaPerceiver(_from_hub_config(values))
    if kind not in _KINDS:
        raise ValueError(f"{_KIND_KEY}={kind!r}: must be one of {', '.join(_KINDS)}, or left out")
    model, config = _KINDS[kind]
    if unknown := sorted(values.keys() - _names(config)):
        raise ValueError(f"not a {kind}'s config: unknown keys {unknown}")
    if "backbone" in values:
        backbone = model_from_dict(values["backbone"])
        if not isinstance(backbone, AdaPerceiver | ViT):
            raise ValueError(
                f"backbone: a {type(backbone).__name__}; must be an AdaPerceiver or a ViT"
            )
        values["backbone"] = backbone.config
    return model(config(**values))


def config_text(model: nn.Module) -> str:
    """The content of a `config.json`."""
    return json.dumps(config_to_dict(model), indent=2, sort_keys=True)


def read_config(path: Path) -> nn.Module:
    """The model that a `config.json` describes; ValueError names the file and what is wrong."""
    with naming(path):
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"holds a {type(values).__name__}, not an object")
        return model_from_dict(values)


def for_reference(model: nn.Module) -> tuple[nn.Module, str]:
    """The model as the reference's constructors can make it, and what they cannot say ('': all).

    Their one `ffn_ratio` gives the blocks' FFNs and those of the adapters alike, so a cut width can
    be said where no adapter has an FFN; its own smaller widths are then no longer named.
    """
    if isinstance(model, DenseModel):
        backbone, why = for_reference(_network(model.config.backbone))
        config = dataclasses.replace(model.config, backbone=backbone.config)
        head = getattr(config, "head", "linear")
        unsaid = [why, "" if head == "linear" else f"head={head}"]
        return model.clone(config=config), "; ".join(filter(None, unsaid))
    if not isinstance(model, AdaPerceiver):
        return model, ""
    c = model.config
    unsaid = [
        f"{name}={value}"
        for name in ("rope_scale", "fourier_bands")
        if (value := getattr(c, name)) is not None
    ]
    if c.max_width is not None:
        both = c.num_classes is not None and c.output_feat_dim is not None
        if c.use_embed_ffn or c.use_output_ffn or both:
            unsaid.append(
                f"a width of {c.max_width}, since the FFNs of its adapters keep their size and its "
                "constructor has one ffn_ratio for all"
            )
        else:
            ratio = (c.hidden_units(c.max_width) + 0.5) / c.embed_dim
            c = c.replace(max_width=None, ffn_ratio=ratio, widths=(c.embed_dim,))
    return model.clone(config=c), "; ".join(unsaid)
