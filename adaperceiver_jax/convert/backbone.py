"""Weights of a whole model as those of what a dense model stands on."""

from __future__ import annotations

from typing import Any

from adaperceiver_jax.convert.timm import is_vit

FEATURES = "_feat"
_STREAM = ("output_latents", "write_head", "output_adapter")


def dense_backbone(params: Any) -> tuple[Any, list[str]]:
    """The parameters of a dense model's `backbone`, and the names of what it has no use for.

    Of a distillation model, the stream of features becomes the only one and that of logits is left
    out; of a ViT, its head is. Others are taken as they are.
    """
    unused = []
    if f"write_head{FEATURES}" in params:
        unused = list(_STREAM)
        renamed = {name: params[name + FEATURES] for name in _STREAM}
        streams = {*_STREAM, *(name + FEATURES for name in _STREAM)}
        params = {**{k: v for k, v in params.items() if k not in streams}, **renamed}
    elif is_vit(params):
        unused = [name for name in ("head", "fc_norm") if name in params]
        params = {k: v for k, v in params.items() if k not in unused}
    return params, unused
