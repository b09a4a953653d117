"""Cutting a sub-network out of a model: a smaller model with its own weights."""

from __future__ import annotations

from typing import Any

import jax

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.dense import DenseModel


def extract_config(
    config: AdaPerceiverConfig, width: int | None = None, depth: int | None = None
) -> AdaPerceiverConfig:
    """The config of the first `depth` blocks with FFNs as wide as `width` needs."""
    check_sub_network(config, width=width, depth=depth)
    width = width or config.full_width
    widths = tuple(w for w in config.widths if w < width)
    return config.replace(
        depth=depth or config.depth,
        max_width=None if width == config.embed_dim else width,
        widths=(*widths, width),
    )


def extract(
    model: Any, params: Any, width: int | None = None, depth: int | None = None
) -> tuple[Any, Any]:
    """The sub-network (width, depth) as a model of its own, with sliced copies of its weights.

    Takes an AdaPerceiver or a dense model around one. What it computes at its full width and
    depth is what `model` computes at `width` and `depth`; it holds no larger ones.
    """
    if isinstance(model, DenseModel):
        backbone, inner = extract(
            AdaPerceiver(model.config.backbone), params["backbone"], width, depth
        )
        config = type(model.config)(**{**vars(model.config), "backbone": backbone.config})
        return model.clone(config=config), {**params, "backbone": inner}
    if not isinstance(model, AdaPerceiver):
        raise ValueError(f"model={type(model).__name__}: only an AdaPerceiver has sub-networks")
    config = extract_config(model.config, width, depth)
    hidden = config.hidden_units(config.full_width)
    blocks = jax.tree.map(lambda p: p[: config.depth], params["blocks"])
    ffn = {
        name: {
            leaf: value[:, :hidden] if name == "fc2" and leaf == "kernel" else value[..., :hidden]
            for leaf, value in layer.items()
        }
        for name, layer in blocks["ffn"].items()
    }
    ffn["fc2"]["bias"] = blocks["ffn"]["fc2"]["bias"]
    return model.clone(config=config), {**params, "blocks": {**blocks, "ffn": ffn}}
