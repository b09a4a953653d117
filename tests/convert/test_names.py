"""PyTorch names of parameters, and what does not fit is named; test_hub goes there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.small_models import TINY, model_and_params, random_config, random_params

BACKBONE = ap.AdaPerceiverConfig(**{**TINY, "num_classes": None}, output_feat_dim=6)
VIT = ap.ViTConfig(
    embed_dim=12, depth=2, num_heads=2, num_classes=None, image_size=12, patch_size=4, reg_tokens=1
)
SEGMENTER = dict(num_classes=5, head="segmenter", decoder_features=128, decoder_depth=2)
"""A mask transformer of two heads, as many as 128 channels have."""
MODELS = {
    "classification": ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY)),
    "distillation": ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY, output_feat_dim=6)),
    "dense": ap.AdaPerceiver(BACKBONE),
    "segmentation": ap.SegmentationModel(ap.SegmentationConfig(backbone=BACKBONE, num_classes=3)),
    "depth": ap.DepthModel(ap.DepthConfig(backbone=BACKBONE, bins=4)),
    "policy": ap.PolicyNetwork(ap.PolicyConfig(embed_dim=8, num_patches=6, token_choices=4)),
    "peek": ap.PeekNetwork(ap.PeekConfig(num_classes=5, hidden=6, token_choices=4)),
    "vit": ap.ViT(ap.ViTConfig(embed_dim=12, depth=2, num_heads=2, num_classes=3, reg_tokens=1)),
    "segmenter": ap.SegmentationModel(ap.SegmentationConfig(backbone=BACKBONE, **SEGMENTER)),
    "vit segmentation": ap.SegmentationModel(
        ap.SegmentationConfig(backbone=VIT, num_classes=3, class_token=True, mlp=True)
    ),
    "vit depth": ap.DepthModel(ap.DepthConfig(backbone=VIT, bins=4)),
    "vit segmenter": ap.SegmentationModel(
        ap.SegmentationConfig(backbone=VIT, class_token=True, **SEGMENTER)
    ),
    "swiglu": ap.AdaPerceiver(random_config(3, ffn_layer="swiglu")),
}


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and (x == y).all(), a, b))


def test_kernels_are_transposed_and_blocks_unstacked():
    model, params = model_and_params(0, depth=3)
    state = ap.params_to_torch(model, params)
    assert all(isinstance(array, np.ndarray) for array in state.values())
    for block in range(3):
        ours = params["blocks"]["ffn"]["fc1"]["kernel"][block]
        np.testing.assert_array_equal(state[f"blocks.{block}.ffn.fc1.weight"], ours.T)
    conv = params["patch_embed"]["embed"]["proj"]["kernel"]  # (p, p, in, out)
    weight = state["patch_embed.embed.proj.weight"]  # (out, in, p, p)
    np.testing.assert_array_equal(weight[2, 0], conv[:, :, 0, 2])


def shapes(model):
    state = ap.params_to_torch(model, random_params(model))
    return {name: array.shape for name, array in state.items()}


def test_the_mask_transformers_names_are_segmenters():
    head = {k: v for k, v in shapes(MODELS["segmenter"]).items() if k.startswith("head.")}
    assert head.keys() >= {f"head.blocks.{i}.attn.qkv.weight" for i in range(2)}
    assert not any(name.startswith("head.blocks.2.") for name in head)
    rest = {k.removeprefix("head."): v for k, v in head.items() if ".blocks." not in k}
    assert rest == {
        "cls_emb": (1, 5, 128),
        **{"proj_dec.weight": (128, 6), "proj_dec.bias": (128,)},
        **{"proj_patch.weight": (128, 128), "proj_classes.weight": (128, 128)},
        **{f"decoder_norm.{leaf}": (128,) for leaf in ("weight", "bias")},
        **{f"mask_norm.{leaf}": (5,) for leaf in ("weight", "bias")},
    }


def test_a_dense_vit_is_a_vit_under_backbone_with_an_mlp_beside_it():
    found = shapes(MODELS["vit segmentation"])
    inner = {k.removeprefix("backbone.") for k in found if k.startswith("backbone.")}
    assert inner == set(shapes(ap.ViT(VIT)))
    assert {k: v for k, v in found.items() if not k.startswith("backbone.")} == {
        **{f"mlp.{layer}.weight": (12, 12) for layer in ("fc1", "fc2")},
        **{f"mlp.{layer}.bias": (12,) for layer in ("fc1", "fc2")},
        **{"head.bn.weight": (24,), "head.bn.bias": (24,)},
        **{"head.conv_seg.weight": (3, 24, 1, 1), "head.conv_seg.bias": (3,)},
    }


def test_half_precision_stays_half():
    model, params = model_and_params(0)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    state = ap.params_to_torch(model, half)
    assert {str(array.dtype) for array in state.values()} == {"bfloat16"}
    assert same(ap.params_from_torch(model, state), half)


def test_what_does_not_fit_is_named():
    model, name = MODELS["classification"], "blocks.1.attn.q.weight"
    params = random_params(model)
    state = ap.params_to_torch(model, params)
    for changed, message in (
        ({k: v for k, v in state.items() if k != name}, f"missing: {name}"),
        (state | {"blocks.9.attn.q.weight": state[name]}, r"left over: blocks\.9\.attn\.q\.weight"),
        (state | {name: state[name][:5]}, rf"{name} is \(5, 24\), the model's is \(24, 24\)"),
        ({}, r"missing: .* and \d+ more"),
    ):
        with pytest.raises(ValueError, match=f"do not fit AdaPerceiver; .*{message}"):
            ap.params_from_torch(model, changed)
    with pytest.raises(ValueError, match=r"output_adapter_feat.*is missing, the model's is"):
        ap.params_to_torch(MODELS["distillation"], params)
    with pytest.raises(ValueError, match=r"the model's is none"):
        ap.params_to_torch(model, random_params(MODELS["distillation"]))
