"""Weights of one model as those of another: a ViT's blocks, what a dense model stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FEATURES = "_feat"
_STREAM = ("output_latents", "write_head", "output_adapter")


def is_vit(params: Mapping[str, Any]) -> bool:
    """True if these are a ViT's parameters."""
    return "qkv" in params.get("blocks", {}).get("attn", {})


def adaperceiver_blocks(params: Mapping[str, Any], layer_scale: bool) -> dict[str, Any]:
    """A ViT's blocks as AdaPerceiver's: {'blocks': norms, q, k, v, proj, FFN and LayerScale}.

    With one latent, where RoPE turns nothing, an AdaPerceiver's block then computes what the ViT's
    does. A bias that the ViT has not becomes 0, a LayerScale 1; one that AdaPerceiver has not
    (`layer_scale` False) is multiplied into the layer before it.
    """
    theirs = params["blocks"]
    attention, mlp = theirs["attn"], theirs["mlp"]
    kernel = np.asarray(attention["qkv"]["kernel"])  # (L, D, 3 D)
    bias = np.asarray(attention["qkv"].get("bias", np.zeros_like(kernel[:, 0])))
    split = zip("qkv", np.split(kernel, 3, axis=-1), np.split(bias, 3, axis=-1), strict=True)
    projected = {name: {"kernel": k, "bias": b} for name, k, b in split}
    last = {"ls1": dict(attention["proj"]), "ls2": dict(mlp["fc2"])}
    ones = {"gamma": np.ones_like(np.asarray(theirs["norm1"]["scale"]))}
    scales: dict[str, Any] = {}
    for name, layer in last.items():
        gamma = np.asarray(theirs.get(name, ones)["gamma"])
        if layer_scale:
            scales[name] = {"gamma": gamma}
        else:
            layer["kernel"] = np.asarray(layer["kernel"]) * gamma[:, None, :]
            layer["bias"] = np.asarray(layer["bias"]) * gamma
    return {
        "blocks": {
            "norm1": dict(theirs["norm1"]),
            "norm2": dict(theirs["norm2"]),
            "attn": {**projected, "proj": last["ls1"]},
            "ffn": {"fc1": dict(mlp["fc1"]), "fc2": last["ls2"]},
            **scales,
        }
    }


def dense_backbone(params: Any) -> tuple[Any, list[str]]:
    """The parameters of a dense model's `backbone`, and the names of what it has no use for.

    Of a distillation model, the stream of features becomes the only one and that of logits is left
    out; of a ViT, its head is. Others are taken as they are.
    """
    unused: list[str] = []
    if f"write_head{FEATURES}" in params:
        unused = list(_STREAM)
        renamed = {name: params[name + FEATURES] for name in _STREAM}
        rest = {k: v for k, v in params.items() if k.removesuffix(FEATURES) not in _STREAM}
        return {**rest, **renamed}, unused
    if is_vit(params):
        unused = [name for name in ("head", "fc_norm") if name in params]
    return {k: v for k, v in params.items() if k not in unused}, unused
