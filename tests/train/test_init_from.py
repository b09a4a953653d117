"""Starting from other weights: a run's, a hub folder's, all or some of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import adaperceiver_jax as ap
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.init_from import initialise, load_weights
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.sharding import placed
from adaperceiver_jax.train.step import TrainState
from tests.small_models import TINY, random_params, run
from tests.train.small import assert_same

MODEL = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))


def shapes(model=MODEL):
    return placed(ap.param_shapes(model), jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.fixture(scope="module")
def weights():
    return random_params(MODEL, seed=7)


def never():
    raise AssertionError("nothing stays fresh, so nothing fresh is made")


def test_from_a_runs_folder_the_newest_running_mean(tmp_path, weights):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    other = jax.tree.map(jnp.zeros_like, weights)
    checkpoints.save(TrainState(jnp.int32(1), weights, other, {"m": jnp.ones(2)}), 1, {}, None)
    checkpoints.save(TrainState(jnp.int32(2), other, weights, {"m": jnp.ones(2)}), 2, {}, None)
    checkpoints.close()
    assert_same(load_weights(str(tmp_path)), weights)
    with pytest.raises(ValueError, match=r"config.init_from=.*: neither a run's folder .* nor"):
        load_weights(str(tmp_path / "elsewhere"))


def test_from_a_hub_folder(tmp_path, weights):
    ap.save_pretrained(MODEL, weights, tmp_path)
    loaded = load_weights(str(tmp_path))
    params, report = initialise(never, shapes(), loaded, (), "w")
    assert_same(params, weights)
    assert set(report.loaded) == set(flatten_dict(weights, sep="/"))
    assert (report.fresh, report.unused) == ({}, [])
    assert str(report) == f"{len(report.loaded)} parameters loaded"


def test_what_may_stay_fresh_does_and_the_rest_is_loaded(weights):
    other = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, "num_classes": 7}, output_feat_dim=6))
    fresh = random_params(other, seed=8)
    skip = ("output_adapter/.*", ".*_feat/.*")
    params, report = initialise(lambda: fresh, shapes(other), weights, skip, "w")
    ours, old, new = (flatten_dict(tree, sep="/") for tree in (params, weights, fresh))
    assert set(ours) == set(new)
    for path, value in ours.items():
        source = new if path in report.fresh else old
        np.testing.assert_array_equal(value, source[path], err_msg=path)
    assert any(path.startswith("output_adapter/") for path in report.fresh)
    assert any("_feat/" in path for path in report.fresh)
    assert set(report.fresh) | set(report.loaded) == set(new)
    assert "missing there" in str(report)
    assert "(24, 5) there, (24, 7) here" in str(report)


def test_weights_come_in_the_models_dtype_and_what_is_not_used_is_said(weights):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    more = {**half, "policy": {"kernel": np.zeros((2, 2))}}
    params, report = initialise(never, shapes(), more, (), "w")
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.float32), half))
    assert report.unused == ["policy/kernel"]
    assert "1 not used: policy/kernel" in str(report)


VIT = ap.ViT(
    ap.ViTConfig(
        embed_dim=24,
        depth=3,
        num_heads=3,
        mlp_ratio=2.57,
        image_size=16,
        patch_size=4,
        num_classes=5,
    )
)
DENSE = ap.SegmentationModel(
    ap.SegmentationConfig(
        backbone=ap.AdaPerceiverConfig(
            **{**TINY, "num_classes": None}, output_feat_dim=6, use_output_ffn=True
        ),
        num_classes=3,
    )
)


def test_the_blocks_of_a_vit_and_nothing_else(tmp_path):
    weights = random_params(VIT, seed=3)
    ap.save_pretrained(VIT, weights, tmp_path)
    fresh = random_params(MODEL, seed=4)
    params, report = initialise(lambda: fresh, shapes(), load_weights(str(tmp_path)), (), "w")
    assert all(path.startswith("blocks/") for path in report.loaded)
    assert not any(path.startswith("blocks/") for path in report.fresh)
    assert {"head/kernel", "pos_embed", "patch_embed/proj/kernel"} <= set(report.unused)
    attention, theirs = params["blocks"]["attn"], weights["blocks"]["attn"]["qkv"]
    for i, name in enumerate("qkv"):
        part = slice(24 * i, 24 * (i + 1))
        np.testing.assert_array_equal(attention[name]["kernel"], theirs["kernel"][..., part])
        np.testing.assert_array_equal(attention[name]["bias"], theirs["bias"][..., part])
    np.testing.assert_array_equal(params["blocks"]["ls1"]["gamma"], 1)
    assert_same(params["read_head"], fresh["read_head"])
    model, weights = without("qkv_bias"), random_params(vit(qkv_bias=False))
    params, _ = initialise(lambda: random_params(model), shapes(model), weights, (), "w")
    assert set(params["blocks"]["attn"]["q"]) == {"kernel"}


OTHER = ap.AdaPerceiver(MODEL.config.replace(num_classes=7))
UNFIT = r"config.init_from='w' does not fit \d parameters: output_adapter.*config.init_skip"


def vit(**changes):
    return ap.ViT(dataclasses.replace(VIT.config, **changes))


SILU = ap.AdaPerceiver(MODEL.config.replace(act_layer="silu"))


def without(*biases):
    return ap.AdaPerceiver(MODEL.config.replace(**dict.fromkeys(biases, False)))


@pytest.mark.parametrize(
    ("model", "weights", "skip", "message"),
    [
        (MODEL, {"elsewhere": np.zeros(3)}, (".*",), "init_from='w': none of its parameters fit"),
        (OTHER, MODEL, (), UNFIT),
        (OTHER, MODEL, ("output_adapter", "output_adapte./kerne"), UNFIT),  # of whole paths
        (MODEL, vit(mlp_ratio=4.0), (), r"ffn/fc1/kernel \(\(3, 24, 96\) there, .*61\) h"),
        (without("qkv_bias"), VIT, (), r"a ViT with blocks/attn/\w+/bias.* which the model has"),
        (without("proj_bias"), VIT, (), r"a ViT with blocks/attn/\w+/bias.* which the model has"),
        (DENSE, MODEL, ("head/.*",), r"backbone/output_\w+/\S+ \(missing there\)"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(model, weights, skip, message):
    """A dense model needs a stream of features, which a classifier does not have."""
    weights = weights if isinstance(weights, dict) else random_params(weights)
    with pytest.raises(ValueError, match=message):
        initialise(never, shapes(model), weights, skip, "w")


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (MODEL, vit(num_heads=2), r"whose num_heads is 2; the model's is 3: set config"),
        (SILU, VIT, r"set config\.model\.act_layer=gelu"),
    ],
)
def test_a_vit_that_computes_otherwise_is_refused(tmp_path, model, weights, message):
    ap.save_pretrained(weights, random_params(weights), tmp_path)
    load_weights(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_weights(str(tmp_path), model)


STREAM = ("output_latents", "write_head", "output_adapter")


def test_a_dense_model_takes_the_stream_of_features_of_a_distilled_one():
    both = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY, output_feat_dim=6))
    weights = random_params(both)
    fresh = jax.tree.map(jnp.zeros_like, random_params(DENSE))
    params, report = initialise(lambda: fresh, shapes(DENSE), weights, ("head/.*",), "w")
    for name, mine in params["backbone"].items():
        assert_same(mine, weights[f"{name}_feat" if name in STREAM else name])
    assert all(path.startswith("head/") for path in report.fresh)
    assert set(STREAM) <= set(report.unused)
    # and so gives its features
    images = np.zeros((1, 16, 16, 3), np.float32)
    want = run(both, weights, images).features
    got = run(ap.AdaPerceiver(DENSE.config.backbone), params["backbone"], images).features
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_dense_model_on_a_vit_takes_all_but_its_head_and_of_a_dense_one_all():
    bare = dataclasses.replace(VIT.config, num_classes=None)
    config = ap.SegmentationConfig(backbone=bare, num_classes=3, mlp=True)
    model, weights = ap.SegmentationModel(config), random_params(VIT)
    fresh = random_params(model)
    skip = ("head/.*", "mlp/.*")
    params, report = initialise(lambda: fresh, shapes(model), weights, skip, "w")
    assert_same(params["backbone"], {k: v for k, v in weights.items() if k != "head"})
    assert "head" in report.unused
    again, _ = initialise(never, shapes(model), params, (), "w")  # and all of a dense model
    assert_same(again, params)
