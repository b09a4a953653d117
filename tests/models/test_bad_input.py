"""Bad input is refused before any work, naming the argument, the value and what is allowed."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.small_models import TINY, random_images, random_params

CONFIG = ap.AdaPerceiverConfig(**TINY)
DENSE = CONFIG.replace(num_classes=None, output_feat_dim=6)
VIT = ap.ViTConfig(embed_dim=12, depth=2, num_heads=2, image_size=12, patch_size=4)
MODEL = ap.AdaPerceiver(CONFIG)
PARAMS = random_params(MODEL)
IMAGES = random_images(CONFIG)
policy = functools.partial(ap.PolicyConfig, embed_dim=8, num_patches=4)
POLICY = ap.PolicyNetwork(policy(token_choices=2))
ON_VIT = ap.DepthModel(ap.DepthConfig(backbone=dataclasses.replace(VIT, num_classes=None)))


def call(method="__call__", images=IMAGES, model=MODEL, **arguments):
    return model.apply({"params": PARAMS}, images, method=method, **arguments)


def leave(model=MODEL, tau=0.5, **arguments):
    return ap.early_exit(model, PARAMS, IMAGES, tau, **arguments)


def extract(model=MODEL, **arguments):
    return ap.extract(model, PARAMS, **arguments)


def flops(**arguments):
    return ap.flops(CONFIG, **arguments)


@pytest.mark.parametrize(
    ("calls", "arguments", "message"),
    [
        ((call, leave, flops), dict(num_tokens=0), r"num_tokens=0: must be at least 1"),
        ((call, leave, flops), dict(num_tokens=8.0), r"num_tokens=8\.0: must be an integer"),
        ((call, leave, flops, extract), dict(width=0), r"=0: .* in 1\.\.24 \(trained: 8, 16, 24"),
        ((call, leave, flops, extract), dict(width=25), r"width=25: must be in 1\.\.24"),
        ((call, leave, flops, extract), dict(width="8"), r"width=8: must be an integer"),
        ((call, flops, extract), dict(depth=0), r"depth=0: must be in 1\.\.3"),
        ((call, flops, extract), dict(depth=4), r"depth=4: must be in 1\.\.3"),
        ((call, flops, extract), dict(depth=True), r"depth=True: must be an integer"),
    ],
)
def test_sub_networks_that_do_not_exist(calls, arguments, message):
    for each in calls:
        with pytest.raises(ValueError, match=message):
            each(**arguments)


def test_a_traced_sub_network_is_told_to_be_static():
    with pytest.raises(ValueError, match=r"depth=.*under jax\.jit make it a static argument"):
        jax.jit(lambda depth: call(depth=depth))(2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((16, 16, 3), np.float32), r"of shape \(16, 16, 3\): must be \(B, H, W, 3\), ch"),
        (np.zeros((2, 3, 16, 16), np.float32), r"\(2, 3, 16, 16\): must be \(B, H, W, 3\)"),
        (np.zeros((2, 16, 18, 3), np.float32), r"16 x 18: height and width must be multiples of p"),
        (np.zeros((2, 2, 16, 3), np.float32), r"2 x 16: .* e\.g\. 4 x 16"),
        (np.zeros((2, 0, 16, 3), np.float32), r"0 x 16: height and width must be multiples of pat"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"images of dtype uint8: must be floating point"),
        ([[0.0]], r"images of type list: must be an array"),
    ],
)
def test_what_are_no_images(images, message):
    for method in ("__call__", "readouts", "embed"):
        with pytest.raises(ValueError, match=message):
            call(method, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": np.array([8])}, r"widths of shape \(1,\): must be \(2,\)"),
        ({"widths": np.array([8, 25])}, r"widths=\[8, 25\]: each must be in 1\.\.24"),
        ({"widths": np.array([8.0, 8.0])}, r"widths of dtype float64: must be integers"),
        ({"readout_tokens": np.array([2, 2])}, r"readout_tokens of shape \(2,\): must be \(3,\)"),
        ({"readout_tokens": np.array([2, 0, 4])}, r"readout_tokens=\[2, 0, 4\].* in 1\.\.16"),
        ({"token_granularities": (8, 4)}, r"token_granularities=\(8, 4\): must be ascending"),
        ({"token_granularities": (0, 4)}, r"token_granularities=\(0, 4\): must be ascending"),
        ({"token_granularities": 4}, r"token_granularities=4: must be a sequence of integers"),
        ({"token_granularities": (2.5,)}, r"=\(2\.5,\): must be a sequence of integers"),
        ({"token_granularities": ()}, r"token_granularities=\(\): readouts need at least one"),
    ],
)
def test_readouts_of_what_is_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        call("readouts", **arguments)


SPLASH = ap.AdaPerceiver(CONFIG, attention="splash")


@pytest.mark.parametrize(
    ("refused", "arguments", "message"),
    [
        *(
            (leave, dict(tau=tau), r"tau=.*: must be a probability, 0 to 1")
            for tau in (-0.1, 1.5, float("nan"), np.array([0.5, 0.6]))
        ),
        (leave, dict(model=ap.ViT(VIT)), "model=ViT: only an AdaPerceiver"),
        (leave, dict(model=ap.AdaPerceiver(DENSE)), "num_classes=None: early exit needs"),
        (extract, dict(model=ap.ViT(VIT), width=8), "model=ViT: only an AdaPerceiver"),
        (extract, dict(model=ON_VIT, width=8), "of this DepthModel is a ViT, which has no sub-net"),
        (
            call,
            dict(model=ON_VIT, num_tokens=4),
            "the backbone is a ViT, which has no sub-networks",
        ),
        (call, dict(model=SPLASH), "attention='splash': must be one of cut, masked"),
        (call, dict(model=POLICY, images=IMAGES[0]), r"\(16, 16, 3\): must be \(B, 4, 8\)"),
    ],
)
def test_what_models_cannot_do(refused, arguments, message):
    with pytest.raises(ValueError, match=message):
        refused(**arguments)


def vit(**changes):
    return dataclasses.replace(VIT, **changes)


POOLED = vit(class_token=False, global_pool="avg")


def segmentation(backbone=DENSE, **fields):
    return ap.SegmentationConfig(backbone=backbone, **{"num_classes": 3, **fields})


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (CONFIG.replace, {"embed_dim": 25}, r"=25: must be a multiple of 2 \* num_heads = 6"),
        (CONFIG.replace, {"num_heads": 0}, r"num_heads=0: must be an integer, at least 1"),
        (CONFIG.replace, {"embed_dim": 24.0}, r"embed_dim=24\.0: must be an integer, at least 1"),
        (CONFIG.replace, {"ffn_ratio": -1.0}, r"ffn_ratio=-1\.0: must be above 0"),
        (CONFIG.replace, {"rope_scale": 0.0}, r"rope_scale=0\.0: must be above 0"),
        (CONFIG.replace, {"block_mask": "bidir"}, r"='bidir': must be one of block, causal, none"),
        (CONFIG.replace, {"ffn_layer": "moe"}, r"ffn_layer='moe': must be one of mlp, swiglu"),
        (CONFIG.replace, {"token_granularities": (4, 4)}, r"=\(4, 4\): must be ascending"),
        (CONFIG.replace, {"widths": (8, 30)}, r"width=30: must be in 1\.\.24"),
        (CONFIG.replace, {"max_width": 30}, r"max_width=30: must be None or in 1\.\.24 \(emb"),
        (CONFIG.replace, {"image_size": 18}, r"image_size=18: must be a multiple of patch_size=4"),
        (CONFIG.replace, {"num_classes": 0}, r"num_classes=0: must be None or at least 1"),
        (CONFIG.replace, {"num_classes": None}, r"output_feat_dim=None: give at least one"),
        (CONFIG.replace, {"drop_path": 1.0}, r"drop_path=1\.0: must be in \[0, 1\)"),
        (vit, {"class_token": False}, "class_token=False: use global_pool='avg'"),
        (vit, {"global_pool": "max"}, "global_pool='max': must be 'token' or 'avg'"),
        (vit, {"num_heads": 5}, "embed_dim=12: must be a multiple of num_heads=5"),
        (vit, {"image_size": 10}, "image_size=10: must be a multiple of patch_size=4"),
        (vit, {"depth": 0}, "depth=0: must be at least 1"),
        (vit, {"reg_tokens": -1}, "reg_tokens=-1: must be at least 0"),
        (vit, {"num_classes": 0}, "num_classes=0: must be None or at least 1"),
        (segmentation, {"backbone": CONFIG}, "num_classes=None"),
        (segmentation, {"class_token": True}, "class_token=True: is for a ViT"),
        (segmentation, {"mlp": True}, "mlp=True: is for a ViT"),
        (segmentation, {"backbone": POOLED, "class_token": True}, "the backbone, a ViT, has none"),
        (segmentation, {"backbone": vit(global_pool="avg")}, "last norm comes after pooling"),
        (segmentation, {"num_classes": 256}, r"num_classes=256: must be in 1\.\.255"),
        (segmentation, {"head": "dpt"}, "head='dpt': must be one of linear, segmenter"),
        (segmentation, {"decoder_features": 200}, "must be a multiple of 64, one"),
        (segmentation, {"decoder_depth": 0}, "decoder_depth=0: must be at least 1"),
        (segmentation, {"head_drop": 1.0}, r"head_drop=1.0: must be in \[0, 1\)"),
        (ap.DepthConfig, {"backbone": DENSE, "bins": 1}, "bins=1: must be at least 2"),
        (policy, {"token_choices": 0}, "token_choices=0: must be at least 1"),
    ],
)
def test_configs_that_make_no_model(make, fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)
