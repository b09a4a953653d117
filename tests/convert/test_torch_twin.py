"""What is exported loads in PyTorch, strictly, and gives the same outputs there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert import check
from adaperceiver_jax.convert.describe import config_to_dict, for_reference
from tests.convert.test_names import BACKBONE, MODELS
from tests.small_models import TINY, model_and_params, random_config, random_params, run

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from adaperceiver_jax.convert.torch_twin import twin

OUTPUTS = dict(rtol=2e-5, atol=2e-5)
VIT = ap.ViTConfig(
    embed_dim=12, depth=2, num_heads=2, num_classes=3, image_size=8, patch_size=4, layer_scale=1e-6
)
GAP = dataclasses.replace(
    VIT, class_token=False, reg_tokens=4, global_pool="avg", fc_norm=False, layer_scale=None
)
OTHERS = {
    "clip": ap.ViT(dataclasses.replace(GAP, pre_norm=True, norm_epsilon=0.1)),
    "deit3": ap.ViT(dataclasses.replace(VIT, no_embed_class=True, global_pool="avg")),
    "so150m2": ap.ViT(dataclasses.replace(GAP, fc_norm=None, qkv_bias=False)),
    "mlp": ap.DepthModel(
        ap.DepthConfig(backbone=dataclasses.replace(GAP, num_classes=None), bins=4, mlp=True)
    ),
}


def in_pytorch(model, params, folder):
    """A model, exported and read as a PyTorch model."""
    ap.save_pretrained(model, params, folder)
    other = twin(json.loads((folder / "config.json").read_text()))
    state = safetensors_torch.load_file(folder / "model.safetensors")
    other.load_state_dict(state, strict=True)
    return other


def assert_same_outputs(model, params, other, **sub_network):
    shape = (2, *model.example_inputs().shape[1:])
    inputs = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours = run(model, params, inputs, **sub_network)
    theirs = torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy() if inputs.ndim == 4 else inputs)
    with torch.inference_mode():
        found = other(theirs, **sub_network)
    assert found
    for name, want in found.items():
        np.testing.assert_allclose(getattr(ours, name), want, **OUTPUTS, err_msg=name)


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_every_model(name, tmp_path):
    model = (MODELS | OTHERS)[name]
    params = random_params(model)
    assert_same_outputs(model, params, in_pytorch(model, params, tmp_path))


@pytest.mark.parametrize("seed", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_any_adaperceiver_and_its_sub_networks(seed, tmp_path):
    model, params = model_and_params(seed, fourier_bands=2 if seed == 4 else None)
    other, c = in_pytorch(model, params, tmp_path), model.config
    assert_same_outputs(model, params, other, num_tokens=c.max_latent_tokens + 3)
    few = dict(num_tokens=max(1, c.max_latent_tokens // 2), width=c.widths[0], depth=1)
    assert_same_outputs(model, params, other, **few)


def test_a_shallower_sub_network_is_an_ordinary_model(tmp_path):
    model = MODELS["segmentation"]
    small, params = ap.extract(model, random_params(model), depth=2)
    small, unsaid = for_reference(small)
    assert unsaid == ""
    assert_same_outputs(small, params, in_pytorch(small, params, tmp_path))


PLAIN = ap.AdaPerceiverConfig(**TINY, use_embed_ffn=False)


def test_a_narrower_one_too_where_no_adapter_has_an_ffn(tmp_path):
    model = ap.AdaPerceiver(PLAIN)
    for width in range(1, 25):
        ordinary, unsaid = for_reference(ap.AdaPerceiver(ap.extract_config(PLAIN, width)))
        assert unsaid == ""
        assert "max_width" not in config_to_dict(ordinary)
        assert ordinary.config.ffn_hidden == PLAIN.hidden_units(width)
    params = random_params(model)
    small, small_params = ap.extract(model, params, width=8, depth=2)
    ordinary, _ = for_reference(small)
    assert_same_outputs(ordinary, small_params, in_pytorch(ordinary, small_params, tmp_path))
    images = np.random.default_rng(1).standard_normal((2, 16, 16, 3)).astype(np.float32)
    want = run(model, params, images, width=8, depth=2).logits
    loaded, loaded_params = ap.from_pretrained(tmp_path)
    np.testing.assert_allclose(run(loaded, loaded_params, images).logits, want, **OUTPUTS)


def test_where_the_reference_cannot_say_a_width_it_is_said(tmp_path):
    for change in ("use_embed_ffn", True), ("use_output_ffn", True), ("output_feat_dim", 6):
        small = ap.AdaPerceiver(ap.extract_config(PLAIN.replace(**dict([change])), width=8))
        same, unsaid = for_reference(small)
        assert same == small
        assert "a width of 8" in unsaid
    # It loads in the twin, which knows max_width.
    params = random_params(same)
    assert_same_outputs(same, params, in_pytorch(same, params, tmp_path))


def test_what_else_the_reference_cannot_say():
    config = random_config(0, fourier_bands=2, rope_scale=2.0)
    assert for_reference(ap.AdaPerceiver(config))[1] == "rope_scale=2.0; fourier_bands=2"
    dense = ap.SegmentationModel(
        ap.SegmentationConfig(backbone=BACKBONE.replace(rope_scale=2.0), num_classes=3)
    )
    assert for_reference(dense)[1] == "rope_scale=2.0"
    segmenter = ap.SegmentationModel(dataclasses.replace(dense.config, head="segmenter"))
    assert for_reference(segmenter)[1] == "rope_scale=2.0; head=segmenter"
    assert for_reference(MODELS["segmenter"]) == (MODELS["segmenter"], "head=segmenter")
    for name in ("vit segmentation", "vit depth"):
        assert for_reference(MODELS[name]) == (MODELS[name], "")


@pytest.mark.parametrize("name", ["policy", "segmenter"])
def test_the_check_sees_one_wrong_tensor(name):
    model = MODELS[name]
    params = random_params(model)
    state = ap.params_to_torch(model, params)
    assert check.torch_difference(model, params, state) < 1e-5
    kernels = sorted(name for name in state if state[name].ndim >= 2 and "weight" in name)
    for tensor in (kernels[0], kernels[len(kernels) // 2], kernels[-1]):
        wrong = state | {tensor: -state[tensor]}
        assert check.torch_difference(model, params, wrong) > 10 * check.BAR, tensor


def test_different_tensors_are_named():
    a = {"x": np.zeros(2, np.float32), "y": np.ones(1), "z": np.ones(3)}
    assert check.different_tensors(a, dict(a)) == []
    assert check.different_tensors(a, a | {"x": -np.zeros(2, np.float32)}) == ["x"]  # -0.0
    assert check.different_tensors(a, a | {"y": np.ones(1, np.float32)}) == ["y"]
    assert check.different_tensors(a, {"x": a["x"], "w": a["z"]}) == ["w", "y", "z"]
    nan = {"x": np.array([np.nan])}
    assert check.different_tensors(nan, {"x": nan["x"].copy()}) == []


def test_the_check_runs_half_precision_and_sees_what_is_not_finite():
    model = MODELS["policy"]
    params = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), random_params(model))
    assert check.torch_difference(model, params, ap.params_to_torch(model, params)) < 1e-4
    params = random_params(model)
    state = ap.params_to_torch(model, params)
    for name in ("fuse.1.weight", "head_depth.weight"):
        assert check.torch_difference(model, params, state | {name: state[name] * np.nan}) == np.inf
    assert check.not_finite(state) == []
    assert check.not_finite(state | {"x": np.array([1, np.inf])}) == ["x"]


def test_relative_difference():
    assert check.relative_difference([1, 2], [1, 4]) == 0.5
    assert check.relative_difference([0, 0], [0, 0]) == 0
    assert check.relative_difference([1e-3], [0]) > 1
    for wrong in (np.nan, np.inf):
        assert check.relative_difference([wrong], [1]) == np.inf
        assert check.relative_difference([1], [wrong]) == np.inf
        assert check.relative_difference([wrong], [wrong]) == np.inf
