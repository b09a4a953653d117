"""FLOPs against XLA's own count of the unrolled forward."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.flops import exit_flops, exit_test_flops

PAPER = ap.AdaPerceiverConfig()
SHORT = PAPER.replace(depth=3)
FEATURES = SHORT.replace(output_feat_dim=1280)
MANY = tuple(range(16, 257, 8))


def counted_by_xla(model, images, **sub_network) -> float:
    """Of the whole batch, before optimisation: every product as written."""
    shapes = ap.param_shapes(model)
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x, **sub_network))
    images = jax.ShapeDtypeStruct(images, jnp.float32)
    return apply.lower(shapes, images).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("config", "sub_network", "attention"),
    [
        (SHORT, {}, "cut"),
        (SHORT, {}, "masked"),
        (SHORT, {"num_tokens": 100, "width": 416, "depth": 2}, "cut"),
        (SHORT.replace(use_embed_ffn=False, use_output_ffn=True), {"width": 624}, "cut"),
        (SHORT.replace(ffn_layer="swiglu", act_layer="silu"), {}, "cut"),
        (SHORT.replace(fourier_bands=16), {"num_tokens": 64, "depth": 2}, "cut"),
        (SHORT.replace(block_mask="none"), {}, "cut"),
        (SHORT.replace(max_width=416, widths=(416,)), {}, "cut"),
        (FEATURES, {"num_tokens": 128, "width": 624}, "cut"),
        (FEATURES.replace(num_classes=None), {}, "masked"),
        (SHORT, {"num_tokens": 512, "token_granularities": (64, 512)}, "cut"),
        (SHORT, {"num_tokens": 256, "token_granularities": MANY}, "cut"),  # which is not cut
    ],
)
def test_within_2_percent_of_xla_at_full_size(config, sub_network, attention):
    model = ap.AdaPerceiver(config, attention=attention, unroll=config.depth)
    ours = ap.flops(config, **sub_network, attention=attention).total
    xla = counted_by_xla(model, (1, 224, 224, 3), **sub_network)
    assert ours == pytest.approx(xla, rel=0.02)
    assert ours < xla  # norms, activations and softmax are not counted


def test_other_image_sizes_and_a_batch_which_shares_the_folded_query():
    size, images = (448, 602), (8, 448, 602, 3)
    xla = counted_by_xla(ap.AdaPerceiver(FEATURES, unroll=3), images, depth=1) / 8
    ours = ap.flops(FEATURES, depth=1, image_size=size, batch_size=8).total
    assert ours == pytest.approx(xla, rel=0.02)
    assert ap.flops(FEATURES, image_size=518) == ap.flops(FEATURES, image_size=(518, 518))
    assert ap.flops(PAPER, batch_size=8).total < ap.flops(PAPER).total


def test_the_parts_are_those_of_the_papers_model_and_add_up():
    assert ap.count_params(ap.param_shapes(ap.AdaPerceiver(PAPER))) == 143_745_252
    whole = ap.flops(PAPER)
    assert set(whole.by_part) == {
        *("patch_embed", "embed_ffn", "read", "projections", "attention", "ffn", "write", "head")
    }
    assert whole.total == sum(whole.by_part.values())
    half = ap.flops(PAPER, width=416, depth=7).by_part
    assert half["projections"] == pytest.approx(whole.by_part["projections"] / 3)
    assert half["ffn"] == pytest.approx(whole.by_part["ffn"] / 3 * 1069 / 2138)
    assert half["read"] == whole.by_part["read"]


def test_dense_models():
    size = (448, 602)
    backbone = FEATURES.replace(num_classes=None, depth=2)
    encoder = ap.flops(backbone, num_tokens=512, image_size=size).by_part
    for model in (
        ap.SegmentationModel(ap.SegmentationConfig(backbone=backbone, num_classes=150), unroll=2),
        ap.DepthModel(ap.DepthConfig(backbone=backbone), unroll=2),
    ):
        xla = counted_by_xla(model, (1, *size, 3), num_tokens=512)
        ours = ap.flops(model.config, num_tokens=512, image_size=size)
        assert ours.total == pytest.approx(xla, rel=0.02)
        assert ours.by_part == {**encoder, "task_head": ours.by_part["task_head"]}


VIT = ap.ViTConfig(depth=2, num_classes=None)
DENSE_ON = {
    "mask transformer": ap.SegmentationConfig(
        backbone=FEATURES.replace(num_classes=None, depth=2), num_classes=150, head="segmenter"
    ),
    "ViT": ap.SegmentationConfig(backbone=VIT, num_classes=150, class_token=True, mlp=True),
    "ViT's patches": ap.SegmentationConfig(backbone=VIT, num_classes=150),
}


@pytest.mark.parametrize("name", DENSE_ON)
def test_other_dense_models(name):
    """A head's blocks are a loop, of which XLA counts one turn, so there is one."""
    config = dataclasses.replace(DENSE_ON[name], decoder_depth=1)
    model = ap.SegmentationModel(config, unroll=2)
    size = 518 if name == "mask transformer" else 512
    ours = ap.flops(config, image_size=size)
    assert ours.total == pytest.approx(counted_by_xla(model, (1, size, size, 3)), rel=0.03)
    assert ours.encoder + ours.head == ours.total
    if name == "mask transformer":  # each further block is a block more
        more = ap.flops(DENSE_ON[name], image_size=size).total - ours.total
        tokens, d = 37 * 37 + 150, 768
        assert more == 24 * tokens * d * d + 4 * tokens * tokens * d


def test_all_exit_tests_of_the_papers_model_cost_under_2_percent_of_its_forward():
    full = ap.flops(PAPER, batch_size=64).total
    exits = exit_flops(PAPER, batch_size=64)
    tests = exits.by_part["exit_tests"] + exits.by_part["write"] + exits.by_part["head"]
    print(f"{PAPER.depth} exit tests: {tests / full:.2%} of a full forward")
    assert 0 < tests < 0.02 * full
    assert exits.total - full == pytest.approx((PAPER.depth - 1) * exit_test_flops(PAPER))


def test_the_products_of_one_exit_test_within_2_percent_of_xla():
    """Beside products it takes deviations, some 4 N D operations that XLA counts too."""
    model, batch, n = ap.AdaPerceiver(PAPER), 4, 64
    z = jax.ShapeDtypeStruct((batch, n, PAPER.embed_dim), jnp.float32)
    shapes = ap.param_shapes(model)
    rope = model.make_run(n).rope
    folded = jax.eval_shape(lambda p: model.apply({"params": p}, rope, method="fold"), shapes)

    def per_image(method, *arguments) -> float:
        program = jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))
        return program.lower(shapes, *arguments).cost_analysis()["flops"] / batch

    def deviation(module, z):
        norm = module.write_head.src_norm
        return norm.inverse_deviation(norm.centre(z))

    deviations = per_image(deviation, z)
    assert 0 < deviations < 5 * n * PAPER.embed_dim
    products = per_image("write_logits", z, folded) - deviations
    assert exit_test_flops(PAPER, n) == pytest.approx(products, rel=0.02)


def test_exits_cost_the_sub_network_and_its_earlier_tests():
    sub_network = dict(num_tokens=64, width=416, image_size=448)
    one = exit_flops(PAPER, **sub_network, depth=1)
    assert one.total == ap.flops(PAPER, **sub_network, depth=1).total
    writes = PAPER.replace(output_feat_dim=8)  # tests write no features
    five = exit_flops(writes, **sub_network, depth=5)
    test, alone = exit_test_flops(PAPER, 64), ap.flops(PAPER, **sub_network, depth=5)
    assert five.total == pytest.approx(alone.total + 4 * test)
    assert five.head == pytest.approx(alone.head + 4 * test)
    with pytest.raises(ValueError, match="num_classes=None: an exit test needs"):
        exit_flops(FEATURES.replace(num_classes=None))


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (ap.ViT(ap.ViTConfig(depth=2), unroll=2), (1, 224, 224, 3)),
        (
            ap.PolicyNetwork(ap.PolicyConfig(embed_dim=832, num_patches=256, token_choices=6)),
            (1, 256, 832),
        ),
    ],
    ids=["ViT", "policy"],
)
def test_other_models(model, images):
    ours = ap.flops(model.config).total
    assert ours == pytest.approx(counted_by_xla(model, images), rel=0.03)  # GELUs are not counted
    with pytest.raises(ValueError, match=f"a {type(model.config).__name__} has no sub-networks"):
        ap.flops(model.config, depth=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "flash"}, "attention='flash': must be one of cut, masked"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"image_size": 225}, "225 x 225: height and width must be multiples of patch_size=14"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ap.flops(PAPER, **arguments)
