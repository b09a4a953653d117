"""Classification and distillation models against the reference, and their folders."""

import json

import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.parity.reading import OUTPUTS, SIZES, read
from tests.small_models import run

HUB_FOLDERS = [
    "classification",
    "classification_bidirectional",
    "classification_causal",
    "classification_other_sizes",
    "classification_plain",
    "classification_swiglu",
    "distillation",
    "early_exit",
]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((f"classification{kind}", "cut") for kind in ("_other_sizes", "_swiglu")),
        *(
            pytest.param(f"classification{kind}", "cut", marks=pytest.mark.slow)
            for kind in ("", "_bidirectional", "_causal", "_plain")
        ),
        pytest.param("distillation", "cut", marks=pytest.mark.slow),
        pytest.param("classification", "masked", marks=pytest.mark.slow),
    ],
)
def test_every_sub_network_gives_the_references_outputs(goldens, name, attention):
    golden = read(goldens / name)
    model, params = ap.from_pretrained(goldens / name)
    model = model.clone(attention=attention)
    for i, call in enumerate(golden.cases["calls"]):
        out = run(
            model,
            params,
            golden.images,
            num_tokens=call.get("num_tokens"),
            width=call.get("mat_dim"),
            depth=call.get("depth"),
            token_granularities=tuple(call.get("token_grans", ())) or None,
        )
        want = golden.arrays[f"logits.{i}"][:, 0]
        np.testing.assert_allclose(out.logits, want, **OUTPUTS, err_msg=str(call))
        if model.config.output_feat_dim:
            want = golden.arrays[f"features.{i}"]
            np.testing.assert_allclose(out.features, want, **OUTPUTS, err_msg=str(call))


@pytest.mark.parametrize("name", HUB_FOLDERS)
def test_a_loaded_and_saved_folder_is_the_same_to_the_byte(goldens, name, tmp_path):
    model, params = ap.from_pretrained(goldens / name)
    ap.save_pretrained(model, params, tmp_path)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (goldens / name / file).read_bytes(), file
    assert json.loads((tmp_path / "config.json").read_text())["embed_dim"] == 48


def test_fourier_maps_before_the_patch_convolution(goldens):
    golden = read(goldens / "classification_fourier")
    bands = golden.cases["fourier_bands"]
    config = ap.AdaPerceiverConfig(**SIZES, fourier_bands=bands)
    assert config.image_size / 2 == golden.cases["max_freq"]
    model = ap.AdaPerceiver(config)
    out = run(model, golden.params(model), golden.images)
    np.testing.assert_allclose(out.logits, golden.arrays["logits"][:, 0], **OUTPUTS)


def test_early_exit_by_the_batch_mean(goldens):
    golden = read(goldens / "early_exit")
    model, params = ap.from_pretrained(goldens / "early_exit")
    for i, call in enumerate(golden.cases["calls"]):
        out = ap.early_exit(model, params, golden.images, call["depth_tau"], per_sample=False)
        assert out.depth.tolist() == [call["exit_depth"]] * len(golden.images)
        want = golden.arrays[f"logits.{i}"][:, 0]
        np.testing.assert_allclose(out.logits, want, **OUTPUTS)


@pytest.mark.slow
def test_logits_of_every_depth_are_those_early_exit_chooses_from(goldens):
    golden = read(goldens / "early_exit")
    model, params = ap.from_pretrained(goldens / "early_exit")
    for depth, mean in enumerate(golden.cases["mean_confidence_by_depth"], start=1):
        logits = run(model, params, golden.images, depth=depth).logits
        want = golden.arrays[f"logits_at_depth.{depth}"][:, 0]
        np.testing.assert_allclose(logits, want, **OUTPUTS)
        shifted = np.exp(want - want.max(axis=-1, keepdims=True))
        confidence = (shifted / shifted.sum(axis=-1, keepdims=True)).max(axis=-1)
        np.testing.assert_allclose(confidence.mean(), mean, rtol=1e-5)
