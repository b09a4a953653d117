"""Bad input is refused before any work, naming the argument, the value and what is allowed."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.small_models import TINY, random_images, random_params

CONFIG = ap.AdaPerceiverConfig(**TINY)
MODEL = ap.AdaPerceiver(CONFIG)
PARAMS = random_params(MODEL)
IMAGES = random_images(CONFIG)


CALLS = {
    "apply": lambda **k: MODEL.apply({"params": PARAMS}, IMAGES, **k),
    "early_exit": lambda **k: ap.early_exit(MODEL, PARAMS, IMAGES, 0.5, **k),
    "flops": lambda **k: ap.flops(CONFIG, **k),
    "extract": lambda **k: ap.extract(MODEL, PARAMS, **k),
}
TAKES = {
    "num_tokens": ("apply", "early_exit", "flops"),
    "width": ("apply", "early_exit", "flops", "extract"),
    "depth": ("apply", "flops", "extract"),
}


@pytest.mark.parametrize(
    ("call", "argument", "value", "message"),
    [
        (call, argument, value, message)
        for argument, value, message in (
            ("num_tokens", 0, r"num_tokens=0: must be at least 1"),
            ("num_tokens", -3, r"num_tokens=-3: must be at least 1"),
            ("width", 0, r"width=0: must be in 1\.\.24 \(trained: 8, 16, 24\)"),
            ("width", 25, r"width=25: must be in 1\.\.24"),
            ("depth", 0, r"depth=0: must be in 1\.\.3"),
            ("depth", 4, r"depth=4: must be in 1\.\.3"),
            ("num_tokens", 8.0, r"num_tokens=8\.0: must be an integer"),
            ("width", "8", r"width=8: must be an integer"),
            ("depth", True, r"depth=True: must be an integer"),
        )
        for call in TAKES[argument]
    ],
)
def test_sub_networks_that_do_not_exist(call, argument, value, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](**{argument: value})


def test_a_traced_sub_network_is_told_to_be_static():
    apply = jax.jit(lambda depth: MODEL.apply({"params": PARAMS}, IMAGES, depth=depth))
    with pytest.raises(ValueError, match=r"depth=.*under jax\.jit make it a static argument"):
        apply(2)


@pytest.mark.parametrize("method", ["__call__", "readouts", "embed"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 16, 3), r"images of shape \(16, 16, 3\): must be \(B, H, W, 3\), channels last"),
        ((2, 3, 16, 16), r"\(2, 3, 16, 16\): must be \(B, H, W, 3\), channels last"),
        ((2, 16, 18, 3), r"16 x 18: height and width must be multiples of patch_size=4"),
        ((2, 2, 16, 3), r"2 x 16: height and width must be multiples of patch_size=4"),
        ((2, 0, 16, 3), r"0 x 16: height and width must be multiples of patch_size=4"),
    ],
)
def test_images_of_another_shape(method, shape, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply({"params": PARAMS}, np.zeros(shape, np.float32), method=method)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": np.array([8])}, r"widths of shape \(1,\): must be \(2,\)"),
        ({"widths": np.array([8, 25])}, r"widths=\[8, 25\]: each must be in 1\.\.24"),
        ({"widths": np.array([0, 8])}, r"widths=\[0, 8\]: each must be in 1\.\.24"),
        ({"widths": np.array([8.0, 8.0])}, r"widths of dtype float64: must be integers"),
        ({"readout_tokens": np.array([2, 2])}, r"readout_tokens of shape \(2,\): must be \(3,\)"),
        ({"readout_tokens": np.array([2, 0, 4])}, r"readout_tokens=\[2, 0, 4\].* in 1\.\.16"),
        ({"readout_tokens": np.array([2, 17, 4])}, r"readout_tokens=\[2, 17, 4\].* in 1\.\.16"),
        ({"token_granularities": (8, 4)}, r"token_granularities=\(8, 4\): must be ascending"),
        ({"token_granularities": (0, 4)}, r"token_granularities=\(0, 4\): must be ascending"),
        ({"token_granularities": 4}, r"token_granularities=4: must be a sequence of integers"),
        ({"token_granularities": (2.5,)}, r"=\(2\.5,\): must be a sequence of integers"),
        ({"token_granularities": ()}, r"token_granularities=\(\): readouts need at least one"),
    ],
)
def test_readouts_of_what_is_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply({"params": PARAMS}, IMAGES, method="readouts", **arguments)


@pytest.mark.parametrize("method", ["__call__", "readouts", "embed"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), r"images of dtype uint8: must be floating point"),
        ([[0.0]], r"images of type list: must be an array"),
    ],
)
def test_images_of_another_kind(method, images, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply({"params": PARAMS}, images, method=method)


def test_readouts_without_granularities():
    model = ap.AdaPerceiver(CONFIG.replace(token_granularities=()))
    with pytest.raises(ValueError, match=r"token_granularities=\(\): readouts need at least one"):
        model.apply({"params": PARAMS}, IMAGES, method="readouts")


@pytest.mark.parametrize("tau", [-0.1, 1.5, float("nan"), np.array([0.5, 0.6])])
def test_early_exit_at_what_is_no_probability(tau):
    with pytest.raises(ValueError, match=r"tau=.*: must be a probability, 0 to 1"):
        ap.early_exit(MODEL, PARAMS, IMAGES, tau)


@pytest.mark.parametrize(
    "model",
    [
        ap.ViT(ap.ViTConfig()),
        ap.SegmentationModel(
            ap.SegmentationConfig(
                backbone=CONFIG.replace(num_classes=None, output_feat_dim=6), num_classes=3
            )
        ),
    ],
)
def test_early_exit_of_what_has_none(model):
    with pytest.raises(ValueError, match=rf"model={type(model).__name__}: only an AdaPerceiver"):
        ap.early_exit(model, {}, IMAGES, 0.5)


def test_early_exit_without_classes():
    config = CONFIG.replace(num_classes=None, output_feat_dim=6)
    model = ap.AdaPerceiver(config)
    with pytest.raises(ValueError, match="num_classes=None: early exit needs"):
        ap.early_exit(model, random_params(model), IMAGES, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("embed_dim", 25, r"embed_dim=25: must be a multiple of 2 \* num_heads = 6"),
        ("num_heads", 0, r"num_heads=0: must be an integer, at least 1"),
        ("depth", 0, r"depth=0: must be an integer, at least 1"),
        ("embed_dim", 24.0, r"embed_dim=24\.0: must be an integer, at least 1"),
        ("ffn_ratio", -1.0, r"ffn_ratio=-1\.0: must be above 0"),
        ("rope_scale", 0.0, r"rope_scale=0\.0: must be above 0"),
        ("block_mask", "bidir", r"block_mask='bidir': must be one of block, causal, none"),
        ("ffn_layer", "moe", r"ffn_layer='moe': must be one of mlp, swiglu"),
        ("act_layer", "relu", r"act_layer='relu': must be one of gelu, silu"),
        ("norm_layer", "rmsnorm", r"norm_layer='rmsnorm': must be one of layernorm"),
        ("attn_layer", "sdpa", r"attn_layer='sdpa': must be one of flex, full"),
        ("process_token_init", "x", r"process_token_init='x': must be one of learned, norm"),
        ("token_granularities", (4, 4), r"token_granularities=\(4, 4\): must be ascending"),
        ("widths", (8, 30), r"width=30: must be in 1\.\.24"),
        ("max_width", 30, r"max_width=30: must be None or in 1\.\.24 \(embed_dim\)"),
        ("image_size", 18, r"image_size=18: must be a multiple of patch_size=4"),
        ("num_classes", 0, r"num_classes=0: must be None or at least 1"),
        ("num_classes", None, r"num_classes=None, output_feat_dim=None: give at least one"),
        ("drop_path", 1.0, r"drop_path=1\.0: must be in \[0, 1\)"),
    ],
)
def test_configs_that_make_no_model(field, value, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**{field: value})


def test_an_unknown_attention_implementation():
    model = ap.AdaPerceiver(CONFIG, attention="splash")
    with pytest.raises(ValueError, match="attention='splash': must be one of cut, masked"):
        ap.init_params(model, jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ap.SegmentationConfig(backbone=CONFIG, num_classes=3), "num_classes=None"),
        (
            lambda: ap.DepthConfig(
                backbone=CONFIG.replace(num_classes=None, output_feat_dim=6), bins=1
            ),
            "bins=1: must be at least 2",
        ),
        (lambda: ap.ViTConfig(class_token=False), "class_token=False"),
        (lambda: ap.ViTConfig(global_pool="max"), "global_pool='max'"),
        (lambda: ap.ViTConfig(num_heads=5), "embed_dim=768: must be a multiple"),
        (lambda: ap.ViTConfig(num_heads=0), "num_heads=0: must be at least 1"),
        (lambda: ap.ViTConfig(depth=0), "depth=0: must be at least 1"),
        (lambda: ap.ViTConfig(num_classes=0), "num_classes=0: must be None or at least 1"),
        (
            lambda: ap.PolicyConfig(embed_dim=8, num_patches=4, token_choices=0),
            "token_choices=0: must be at least 1",
        ),
    ],
)
def test_configs_of_other_models(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_patches_of_another_shape_for_the_policy_network():
    model = ap.PolicyNetwork(ap.PolicyConfig(embed_dim=8, num_patches=4, token_choices=2))
    params = ap.init_params(model, jax.random.key(0))
    with pytest.raises(ValueError, match=r"patches of shape \(1, 5, 8\): must be \(B, 4, 8\)"):
        model.apply({"params": params}, np.zeros((1, 5, 8), np.float32))
