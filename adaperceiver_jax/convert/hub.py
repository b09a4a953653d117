"""Folders of one model: `config.json` beside `model.safetensors`, or beside Orbax's `params/`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from adaperceiver_jax.convert.describe import config_text, read_config
from adaperceiver_jax.convert.files import SafetensorsFile, naming, write_state
from adaperceiver_jax.convert.names import check_params, params_from_torch, params_to_torch
from adaperceiver_jax.convert.timm import HUB, timm_model, timm_models
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.models.vit import ViT

CONFIG, WEIGHTS, PARAMS = "config.json", "model.safetensors", "params"
HUB_ID = r"[\w-][\w.-]*/[\w.-]+"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model whose weights are at hand but not read yet."""

    model: nn.Module
    read: Callable[[], Any]
    """Gives the parameters; ValueError if they are not the model's."""


def from_pretrained(name: str | os.PathLike, revision: str | None = None) -> tuple[nn.Module, Any]:
    """Loads a model and its parameters from a folder, or from the Hugging Face hub by its id.

    Takes what the reference's `save_pretrained` wrote, what ours did, what `tools/convert.py` did,
    and timm's ViTs ('timm/vit_base_patch16_224.augreg_in21k', also without 'timm/'). `revision` is
    a branch, tag or commit of the hub. The parameters keep the file's dtypes.
    """
    found = find_pretrained(name, revision)
    return found.model, jax.tree.map(jnp.asarray, found.read())


def find_pretrained(name: str | os.PathLike, revision: str | None = None) -> Pretrained:
    """The same as `from_pretrained`, but reads only the config."""
    folder = find_folder(name, revision)
    model = read_config(folder / CONFIG)
    if (folder / WEIGHTS).exists() and (folder / PARAMS).exists():
        raise ValueError(f"{folder}: has both {WEIGHTS} and {PARAMS}/; move one of them away")
    if (folder / WEIGHTS).is_file():
        return Pretrained(model, lambda: _read_safetensors(model, folder / WEIGHTS))
    return Pretrained(model, lambda: _read_orbax(model, folder / PARAMS))


def _read_safetensors(model: nn.Module, path: Path) -> Any:
    state = SafetensorsFile(path)
    with naming(path):
        return params_from_torch(model, state)


def _read_orbax(model: nn.Module, path: Path) -> Any:
    """On this process's first device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        with _said_by_orbax(path):
            stored = checkpointer.metadata(path.absolute()).item_metadata
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                stored.tree,
            )
        with naming(path):
            check_params(model, shapes)
        with _said_by_orbax(path):
            return checkpointer.restore(path.absolute(), shapes)


@contextlib.contextmanager
def _said_by_orbax(path: Path) -> Iterator[None]:
    """Says which folder is damaged; Orbax raises what it meets: ValueError, KeyError, OSError."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: Orbax cannot read it ({reason}); is it whole?") from error


def find_model(name: str | os.PathLike, revision: str | None = None) -> nn.Module:
    """The model that a config.json, a folder, a hub id or a timm name says; reads no weights."""
    path = Path(name)
    if path.is_file():
        return read_config(path)
    if not path.exists() and str(name).removeprefix(HUB) in timm_models():
        return ViT(timm_model(str(name)).config)
    return read_config(find_folder(name, revision, weights=False) / CONFIG)


def find_folder(name: str | os.PathLike, revision: str | None = None, weights: bool = True) -> Path:
    """A folder here, or the hub's by its id, fetched (or found in the hub's cache).

    weights: whether it must hold weights too, not only a config.
    """
    folder = Path(name)
    hub_id = HUB + str(name) if str(name) in timm_models() else str(name)
    if not folder.exists() and re.fullmatch(HUB_ID, hub_id):
        files = [CONFIG, WEIGHTS, f"{PARAMS}/*"] if weights else [CONFIG]
        try:
            folder = Path(
                huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=files)
            )
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise ValueError(
                f"{name}: neither a folder here nor to be had from the Hugging Face hub ({error})"
            ) from error
    if folder.is_file():
        raise ValueError(f"{folder}: a file, not a folder; tools/convert.py makes one of it")
    if not (folder / CONFIG).is_file():
        what = f"it has no {CONFIG}"
    elif weights and not (folder / WEIGHTS).is_file() and not (folder / PARAMS).is_dir():
        what = f"it has no {WEIGHTS} and no {PARAMS}/"
    else:
        return folder
    near = difflib.get_close_matches(str(name), timm_models(), 1, 0.6)
    meant = f"; did you mean timm's {near[0]}?" if near and not folder.exists() else ""
    raise ValueError(
        f"{folder}: not a checkpoint folder, {what}; give a folder that save_pretrained wrote, or "
        f"a hub id like 'pjajal/adaperceiver-v1'{meant}"
    )


def save_pretrained(model: nn.Module, params: Any, folder: str | os.PathLike) -> None:
    """Writes `config.json` and `model.safetensors`, each whole or not at all.

    A classifier or distillation model loads in the reference with strict=True, also one cut in
    depth; not one cut in width, nor with rope_scale or fourier_bands, which its constructor does
    not know. `config.json` of other models names them under "model".
    """
    state = params_to_torch(model, params)
    folder = Path(folder)
    _check_only(folder, WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / WEIGHTS, state)
    _write_config(model, folder)


def save_orbax(model: nn.Module, params: Any, folder: str | os.PathLike) -> None:
    """Writes `config.json` and `params/`, an Orbax checkpoint of the parameters as they are here.

    `from_pretrained` and `config.init_from` read it, and so does Orbax alone, onto any mesh.
    """
    check_params(model, params)
    folder = Path(folder).absolute()
    _check_only(folder, PARAMS)
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:  # atomic: a renamed folder
        checkpointer.save(folder / PARAMS, jax.tree.map(jnp.asarray, params), force=True)
    _write_config(model, folder)


def _check_only(folder: Path, ours: str) -> None:
    """Raises ValueError if the folder has weights in the other format, which would be read."""
    (other,) = {WEIGHTS, PARAMS} - {ours}
    if (folder / other).exists():
        raise ValueError(f"{folder}: has weights in {other} already; name another folder")


def _write_config(model: nn.Module, folder: Path) -> None:
    write_bytes(folder / CONFIG, config_text(model).encode())
