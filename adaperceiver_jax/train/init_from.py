"""Starting from other weights: which were loaded, which were not, and why."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from adaperceiver_jax.convert.backbone import adaperceiver_blocks, dense_backbone, is_vit
from adaperceiver_jax.convert.hub import find_pretrained
from adaperceiver_jax.models.vit import ViTConfig
from adaperceiver_jax.train.checkpoints import FOLDER, Checkpoints


@dataclasses.dataclass(frozen=True)
class Report:
    """The source of every parameter, by path."""

    loaded: list[str]
    fresh: dict[str, str]
    """Parameters that stayed fresh, and why."""
    unused: list[str]
    """Paths that only the other weights have."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        if self.fresh:
            lines.append(f"{len(self.fresh)} left fresh:")
            lines += [f"  {name}: {why}" for name, why in sorted(self.fresh.items())]
        if self.unused:
            lines.append(f"{len(self.unused)} not used: {', '.join(sorted(self.unused))}")
        return "\n".join(lines)


def load_weights(path: str, model: nn.Module | None = None) -> Any:
    """Parameters from a run's folder (its newest EMA weights), a hub folder or id, a timm name.

    model: the one they are for; ValueError if they are a ViT's that computes otherwise, which no
    shape tells.
    """
    folder = Path(path)
    heads: int | None = None
    if (folder / FOLDER).is_dir():
        with Checkpoints(folder) as checkpoints:
            _, weights = checkpoints.restore_weights()
        if is_vit(weights):
            heads = json.loads((folder / "config.json").read_text())["vit"]["num_heads"]
    else:
        try:
            found = find_pretrained(path)
            weights = found.read()
        except ValueError as error:
            raise ValueError(
                f"config.init_from={path!r}: neither a run's folder (it has no {FOLDER}/) nor "
                f"weights: {error}"
            ) from error
        if is_vit(weights):
            heads = found.model.config.num_heads
    if model is not None and heads is not None:
        config = getattr(model.config, "backbone", model.config)
        wanted: dict[str, Any] = {"num_heads": heads}
        if not isinstance(config, ViTConfig):
            wanted |= {"ffn_layer": "mlp", "act_layer": "gelu"}
        for key, value in wanted.items():
            if getattr(config, key) != value:
                raise ValueError(
                    f"config.init_from={path!r}: a ViT, whose {key} is {value}; the model's is "
                    f"{getattr(config, key)}: set config.model.{key}={value}"
                )
    return weights


def initialise(
    fresh: Callable[[], Any], shapes: Any, weights: Any, skip: tuple[str, ...], name: str
) -> tuple[Any, Report]:
    """Parameters of the shapes (and shardings) asked for, from `weights` where they fit.

    Args:
      fresh: makes the model's fresh parameters.
      shapes: of the parameters, with shardings.
      weights: nested dict of arrays, by the same names; for a dense model, also those of what it
        stands on (of a distillation model the stream of features); for an AdaPerceiver a ViT's,
        whose blocks are taken and whose rest is not.
      skip: patterns of paths ('write_head/.*') that may stay fresh.
      name: of the weights, for the error.

    Raises ValueError naming the parameters that did not fit and that `skip` does not cover.
    """
    ours = flatten_dict(shapes, sep="/")
    theirs = flatten_dict(weights, sep="/")
    left: list[str] = []
    if is_vit(weights) and not is_vit(shapes.get("backbone", shapes)):
        left = [path for path in theirs if not path.startswith("blocks/")]
        blocks = adaperceiver_blocks(weights, layer_scale="ls1" in shapes["blocks"])
        theirs = flatten_dict(blocks, sep="/")
        extra = [path for path in sorted(theirs.keys() - ours.keys()) if np.any(theirs[path])]
        if extra:
            raise ValueError(
                f"config.init_from={name!r}: a ViT with {', '.join(extra)}, which the model has "
                "not; set config.model.qkv_bias and config.model.proj_bias to True"
            )
        skip = (*skip, "(?!blocks/).*")
    if "backbone" in shapes and "backbone" not in weights:
        backbone, passed_over = dense_backbone(unflatten_dict(theirs, sep="/"))
        theirs = flatten_dict({"backbone": backbone}, sep="/")
        left += passed_over
    report = Report([], {}, sorted(theirs.keys() - ours.keys()) + left)
    for path, shape in ours.items():
        if path not in theirs:
            report.fresh[path] = "missing there"
        elif tuple(theirs[path].shape) != tuple(shape.shape):
            report.fresh[path] = f"{tuple(theirs[path].shape)} there, {tuple(shape.shape)} here"
        else:
            report.loaded.append(path)
    bad = {
        path: why
        for path, why in report.fresh.items()
        if not any(re.fullmatch(pattern, path) for pattern in skip)
    }
    if bad:
        some = "; ".join(f"{path} ({why})" for path, why in sorted(bad.items())[:5])
        raise ValueError(
            f"config.init_from={name!r} does not fit {len(bad)} parameters: {some}. Where they "
            "shall stay fresh, say so in config.init_skip, as patterns of their paths"
        )
    if not report.loaded:
        raise ValueError(f"config.init_from={name!r}: none of its parameters fit this model")
    result = flatten_dict(fresh(), sep="/") if report.fresh else {}
    for path in report.loaded:
        value = np.asarray(theirs.pop(path)).astype(ours[path].dtype)
        result[path] = jax.make_array_from_callback(
            value.shape, ours[path].sharding, value.__getitem__
        )
    return unflatten_dict(result, sep="/"), report
