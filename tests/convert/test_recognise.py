"""Which model a bare file of weights holds."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert.files import write_state
from adaperceiver_jax.convert.recognise import find_in_file, recognise
from tests.convert.test_names import MODELS, same
from tests.small_models import random_params

PAPER = ap.AdaPerceiverConfig(depth=2)
DENSE = PAPER.replace(num_classes=None, output_feat_dim=40)
SEGMENTER = dict(head="segmenter", decoder_features=192, decoder_depth=3)
SWIGLU = PAPER.replace(use_embed_ffn=False, ffn_layer="swiglu", layer_scale=None)
OTHER_PATCHES = PAPER.replace(patch_size=16, image_size=256, in_channels=1, proj_bias=False)
RECOGNISED = {
    "classification": ap.AdaPerceiver(PAPER),
    "distillation": ap.AdaPerceiver(PAPER.replace(output_feat_dim=40, qkv_bias=False)),
    "dense": ap.AdaPerceiver(DENSE),
    "swiglu": ap.AdaPerceiver(SWIGLU),
    "output ffn": ap.AdaPerceiver(PAPER.replace(use_output_ffn=True, num_classes=7)),
    "fourier": ap.AdaPerceiver(PAPER.replace(fourier_bands=5)),
    "other patches": ap.AdaPerceiver(OTHER_PATCHES),
    "cut": ap.AdaPerceiver(PAPER.replace(max_width=416, widths=(416,))),
    "segmentation": ap.SegmentationModel(ap.SegmentationConfig(backbone=DENSE, num_classes=9)),
    "depth": ap.DepthModel(ap.DepthConfig(backbone=DENSE, bins=32)),
    "segmenter": ap.SegmentationModel(
        ap.SegmentationConfig(backbone=DENSE, num_classes=9, **SEGMENTER)
    ),
    "policy": MODELS["policy"],
}


def weights_of(model):
    """Arrays of the right shapes."""
    zero = np.zeros((), np.float32)
    params = jax.tree.map(lambda leaf: np.broadcast_to(zero, leaf.shape), ap.param_shapes(model))
    return ap.params_to_torch(model, params)


@pytest.mark.parametrize("name", RECOGNISED)
def test_models_of_the_papers_width(name):
    assert recognise(weights_of(RECOGNISED[name])) == RECOGNISED[name]


def test_other_ffn_ratios_hold_as_many_hidden_units():
    model = ap.AdaPerceiver(PAPER.replace(ffn_ratio=34 / 13))
    found = recognise(weights_of(model))
    assert found.config.ffn_hidden == model.config.ffn_hidden == 2176
    assert ap.param_shapes(found) == ap.param_shapes(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classification", "an AdaPerceiver of 24 channels, not the paper's 832.*--model"),
        ("segmenter", "an AdaPerceiver of 24 channels"),
        ("vit", "a ViT, whose heads no tensor tells; .*--model"),
        ("vit segmentation", "a dense model on a ViT, whose heads no tensor tells; .*--model"),
    ],
)
def test_what_its_tensors_do_not_tell_must_be_given(name, message, tmp_path):
    model = MODELS[name]
    params = random_params(model)
    path = tmp_path / "w.safetensors"
    write_state(path, ap.params_to_torch(model, params))
    with pytest.raises(ValueError, match=rf"w\.safetensors: {message}"):
        find_in_file(path)
    found = find_in_file(path, model)
    assert found.model == model
    assert same(found.read(), params)


def test_what_is_no_model_or_does_not_fit_names_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_state(path, {"layer1.conv.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"not a model of this package \(it holds layer1\.conv"):
        find_in_file(path)
    with pytest.raises(ValueError, match=r"w\.safetensors: .*left over: layer1\.conv\.weight"):
        find_in_file(path, MODELS["classification"]).read()
