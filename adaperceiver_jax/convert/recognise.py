"""Which model a file of weights holds, where nothing but its tensors says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn

from adaperceiver_jax.convert.files import State, naming, read_state
from adaperceiver_jax.convert.hub import Pretrained
from adaperceiver_jax.convert.names import params_from_torch
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.dense import (
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.policy import PolicyConfig, PolicyNetwork

PAPER = AdaPerceiverConfig()
_BY_MODEL = (
    "say which model it is with --model: a config.json, a folder or hub id that has one, or a "
    "timm name"
)
ASSUMED = (
    *("num_heads", "max_latent_tokens", "token_granularities", "widths", "rope_theta"),
    *("block_mask", "act_layer"),
)
"""Fields that no tensor tells, so that the paper's are taken."""


def find_in_file(path: Path, model: nn.Module | None = None) -> Pretrained:
    """A file of weights as a model: `model`, or what its tensors say."""
    state = read_state(path)
    with naming(path):
        found = recognise(state) if model is None else model

    def read() -> Any:
        with naming(path):
            return params_from_torch(found, state)

    return Pretrained(found, read)


def recognise(state: State) -> nn.Module:
    """The model of these tensors: an AdaPerceiver of the paper's width, bare or under a
    segmentation head (linear or a mask transformer) or a depth head, or a policy network.

    Sizes are the tensors'; what they do not tell (`ASSUMED`) is the paper's. ValueError for
    anything else.
    """
    if "mixer_block.norm1.weight" in state:
        heads = ("tokens", "mat_dim", "depth")
        tokens, widths, depths = (_shape(state, f"head_{head}.weight")[0] for head in heads)
        return PolicyNetwork(
            PolicyConfig(
                embed_dim=len(state["mixer_block.norm1.weight"]),
                num_patches=_shape(state, "mixer_block.mlp_tokens.fc1.weight")[1],
                token_choices=tokens,
                width_choices=widths,
                depth_choices=depths,
            )
        )
    if "backbone.process_latents.token" in state and "head.cls_emb" in state:
        _, classes, features = _shape(state, "head.cls_emb")  # its heads follow from its channels
        return SegmentationModel(
            SegmentationConfig(
                backbone=_adaperceiver(state, "backbone."),
                num_classes=classes,
                head="segmenter",
                decoder_features=features,
                decoder_depth=_depth(state, "head.blocks."),
            )
        )
    if "backbone.process_latents.token" in state and "head.conv_seg.weight" in state:
        backbone = _adaperceiver(state, "backbone.")
        out, _, height, _ = _shape(state, "head.conv_seg.weight")
        if height == 1:
            return SegmentationModel(SegmentationConfig(backbone=backbone, num_classes=out))
        return DepthModel(DepthConfig(backbone=backbone, bins=out))
    if "process_latents.token" in state:
        return AdaPerceiver(_adaperceiver(state, ""))
    for prefix, what in (("", "a ViT"), ("backbone.", "a dense model on a ViT")):
        if f"{prefix}blocks.0.attn.qkv.weight" in state:
            raise ValueError(f"{what}, whose heads no tensor tells; {_BY_MODEL}")
    some = ", ".join(sorted(state)[:4])
    raise ValueError(f"not a model of this package (it holds {some}, ...), or {_BY_MODEL}")


def _depth(state: State, prefix: str) -> int:
    """The number of blocks."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return max(map(int, numbers), default=0) + 1


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"missing: {name}")
    return state[name].shape


def _adaperceiver(state: State, prefix: str) -> AdaPerceiverConfig:
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}

    def shape(name: str) -> tuple[int, ...]:
        return _shape(state, prefix + name)

    width, channels, patch_size, _ = shape("patch_embed.embed.proj.weight")
    if width != PAPER.embed_dim:
        raise ValueError(
            f"an AdaPerceiver of {width} channels, not the paper's {PAPER.embed_dim}: its heads, "
            f"granularities and widths are not known; {_BY_MODEL}"
        )
    bands = None
    if channels > 4:  # 3 of the image, 2 (2 bands + 1) Fourier maps
        bands, channels = (channels - 5) // 4, 3
    hidden = shape("blocks.0.ffn.fc1.weight")[0]
    embed_ffn = "patch_embed.ffn.fc1.weight" in names
    full = shape("patch_embed.ffn.fc1.weight")[0] if embed_ffn else hidden
    ratio = PAPER.ffn_ratio if int(width * PAPER.ffn_ratio) == full else (full + 0.5) / width
    cut = None
    if hidden != full:
        cut = next((w for w in range(1, width) if int(w * ratio) == hidden), None)
    outputs: dict[str, int | None] = {}
    for adapter in ("output_adapter", "output_adapter_feat"):
        last = next((f for f in ("ffn.fc2.weight", "ffn.weight") if f"{adapter}.{f}" in names), "")
        outputs[adapter] = shape(f"{adapter}.{last}")[0] if last else None
    classes, features = outputs["output_adapter"], outputs["output_adapter_feat"]
    if "output_latents.token" not in names:  # dense: the one output is features
        classes, features = None, classes
    return PAPER.replace(
        depth=_depth(state, f"{prefix}blocks."),
        in_channels=channels,
        fourier_bands=bands,
        patch_size=patch_size,
        image_size=round(shape("patch_embed.pos_embed")[-2] ** 0.5) * patch_size,
        ffn_ratio=ratio,
        max_width=cut,
        widths=tuple(w for w in PAPER.widths if w <= (cut or width)) or (cut or width,),
        ffn_layer="swiglu" if "blocks.0.ffn.gate.weight" in names else "mlp",
        qkv_bias="blocks.0.attn.q.bias" in names,
        proj_bias="blocks.0.attn.proj.bias" in names,
        layer_scale=PAPER.layer_scale if "blocks.0.ls1.gamma" in names else None,
        use_embed_ffn=embed_ffn,
        use_output_ffn="output_adapter.ffn.fc2.weight" in names,
        num_classes=classes,
        output_feat_dim=features,
    )
