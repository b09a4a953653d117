"""Cutting a sub-network out of a model: a smaller model with its own weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.dense import DenseModel
from adaperceiver_jax.models.vit import ViTConfig


def extract_config(
    config: AdaPerceiverConfig, width: int | None = None, depth: int | None = None
) -> AdaPerceiverConfig:
    """The config of the first `depth` blocks with FFNs as wide as `width` needs."""
    check_sub_network(config, width=width, depth=depth)
    width = width or config.full_width
    widths = tuple(w for w in config.widths if w < width)
    depth = depth or config.depth
    kept = (depth - 1) / max(config.depth - 1, 1)  # so that each block keeps its rate
    return config.replace(
        depth=depth,
        drop_path=config.drop_path * kept,
        max_width=None if width == config.embed_dim else width,
        widths=(*widths, width),
    )


def extract(
    model: Any, params: Any, width: int | None = None, depth: int | None = None
) -> tuple[Any, Any]:
    """The sub-network (width, depth) as a model of its own, with its own copies of its weights.

    Takes an AdaPerceiver or a dense model around one. What it computes at its full width and
    depth is what `model` computes at `width` and `depth`; it holds no larger ones. Of a dense
    model on a ViT there is only the whole.
    """
    if isinstance(model, DenseModel) and isinstance(model.config.backbone, ViTConfig):
        if width is not None or depth is not None:
            raise ValueError(
                f"width={width}, depth={depth}: the backbone of this {type(model).__name__} is a "
                "ViT, which has no sub-networks"
            )
        return model, jax.tree.map(lambda p: p.copy(), params)
    if isinstance(model, DenseModel):
        inner, inner_params = extract(
            AdaPerceiver(model.config.backbone), params["backbone"], width, depth
        )
        config = dataclasses.replace(model.config, backbone=inner.config)
        head = jax.tree.map(lambda p: p.copy(), params["head"])
        return model.clone(config=config), {"backbone": inner_params, "head": head}
    if not isinstance(model, AdaPerceiver):
        raise ValueError(f"model={type(model).__name__}: only an AdaPerceiver has sub-networks")
    small = extract_config(model.config, width, depth)
    hidden = small.hidden_units(small.full_width)
    blocks = jax.tree.map(lambda p: p[: small.depth], params["blocks"])
    ffn = {name: dict(layer) for name, layer in blocks["ffn"].items()}
    for name in ffn.keys() - {"fc2"}:
        ffn[name] = {leaf: value[..., :hidden] for leaf, value in ffn[name].items()}
    ffn["fc2"]["kernel"] = ffn["fc2"]["kernel"][:, :hidden]
    params = {**params, "blocks": {**blocks, "ffn": ffn}}
    return model.clone(config=small), jax.tree.map(lambda p: p.copy(), params)
