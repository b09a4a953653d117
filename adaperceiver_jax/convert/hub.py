"""Folders that the reference loads: `config.json` beside `model.safetensors`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from adaperceiver_jax.convert.names import params_from_torch, params_to_torch
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.dense import (
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.policy import PolicyConfig, PolicyNetwork
from adaperceiver_jax.models.vit import ViT, ViTConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# Ours -> the reference's constructor. Fields of the same name are left out.
_HUB_KEYS = {
    "token_granularities": "mask_token_grans",
    "widths": "mat_dims",
    "image_size": "img_size",
    "layer_scale": "ls_init_values",
}
# What the reference's constructors do not know: written only where it says something.
_OPTIONAL = ("max_width", "rope_scale", "fourier_bands", "num_classes", "output_feat_dim")
# Models the reference has no hub format for say in config.json which one they are.
_KINDS: dict[str, tuple[type[nn.Module], type]] = {
    "SegmentationModel": (SegmentationModel, SegmentationConfig),
    "DepthModel": (DepthModel, DepthConfig),
    "ViT": (ViT, ViTConfig),
    "PolicyNetwork": (PolicyNetwork, PolicyConfig),
}
_KIND_KEY = "model"


def _hub_config(config: AdaPerceiverConfig) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _OPTIONAL and value is None:
            continue
        values[_HUB_KEYS.get(field.name, field.name)] = value
    return values


def _from_hub_config(values: Mapping[str, Any]) -> AdaPerceiverConfig:
    ours = {hub: name for name, hub in _HUB_KEYS.items()}
    names = {field.name for field in dataclasses.fields(AdaPerceiverConfig)}
    given = {ours.get(key, key): value for key, value in values.items()}
    unknown = sorted(key for key in values if ours.get(key, key) not in names)
    missing = sorted(
        _HUB_KEYS.get(name, name) for name in names - set(given) if name not in _OPTIONAL
    )
    if unknown or missing:
        raise ValueError(
            f"not an AdaPerceiver's config: unknown keys {unknown}, missing keys {missing}"
        )
    return AdaPerceiverConfig(**{"num_classes": None, **given})


def config_to_dict(model: nn.Module) -> dict[str, Any]:
    """What `config.json` says of a model of the package."""
    if isinstance(model, AdaPerceiver):
        return _hub_config(model.config)
    kind = type(model).__name__
    if kind not in _KINDS:
        raise ValueError(f"model={kind}: not a model of this package")
    values = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
    if "backbone" in values:
        values["backbone"] = _hub_config(values["backbone"])
    return {_KIND_KEY: kind, **values}


def model_from_dict(values: Mapping[str, Any]) -> nn.Module:
    """The model that `config.json` describes."""
    values = dict(values)
    kind = values.pop(_KIND_KEY, None)
    if kind is None:
        return AdaPerceiver(_from_hub_config(values))
    if kind not in _KINDS:
        raise ValueError(f"{_KIND_KEY}={kind!r}: must be one of {', '.join(_KINDS)}, or left out")
    model, config = _KINDS[kind]
    names = {field.name for field in dataclasses.fields(config)}
    if set(values) - names:
        raise ValueError(f"not a {kind}'s config: unknown keys {sorted(set(values) - names)}")
    if "backbone" in values:
        values["backbone"] = _from_hub_config(values["backbone"])
    return model(config(**values))


def from_pretrained(name: str | os.PathLike, revision: str | None = None) -> tuple[nn.Module, Any]:
    """Loads a model and its parameters from a folder, or from the Hugging Face hub by its id.

    Takes what the reference's `save_pretrained` wrote and what ours did. `revision` is a branch,
    tag or commit of the hub. The parameters keep the file's dtypes.
    """
    folder = _find(name, revision)
    try:
        model = model_from_dict(json.loads((folder / CONFIG).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    try:
        state = safetensors.numpy.load_file(folder / WEIGHTS)
        params = params_from_torch(model, state)
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    return model, jax.tree.map(jnp.asarray, params)


def _find(name: str | os.PathLike, revision: str | None) -> Path:
    folder = Path(name)
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    str(name), revision=revision, allow_patterns=[CONFIG, WEIGHTS]
                )
            )
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise ValueError(
                f"{name}: neither a folder here nor to be had from the Hugging Face hub ({error})"
            ) from error
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: not a checkpoint folder, it has no {' and no '.join(missing)}; give a "
            "folder that save_pretrained wrote, or a hub id like 'pjajal/adaperceiver-v1'"
        )
    return folder


def save_pretrained(model: nn.Module, params: Any, folder: str | os.PathLike) -> None:
    """Writes `config.json` and `model.safetensors`, each whole or not at all.

    A classifier or distillation model loads in the reference with strict=True, also one cut in
    depth; not one cut in width, nor with rope_scale or fourier_bands, which its constructor does
    not know. `config.json` of other models names them under "model".
    """
    state = params_to_torch(model, params)
    text = json.dumps(config_to_dict(model), indent=2, sort_keys=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, safetensors.numpy.save(state))
    _write(folder / CONFIG, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that no half of it is ever seen."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
