"""The reference's own files through every format of ours and back: the same bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import adaperceiver_jax as ap
from adaperceiver_jax.convert.describe import config_text, config_to_dict, for_reference
from adaperceiver_jax.convert.files import read_state, write_state
from adaperceiver_jax.convert.hub import save_orbax
from adaperceiver_jax.convert.recognise import find_in_file
from tests.parity.reading import OUTPUTS, SIZES, TRAINED, read
from tests.parity.test_adaperceiver import HUB_FOLDERS
from tests.parity.test_teacher_and_policy import VARIANTS, vit_config
from tests.small_models import run


def assert_same_bits(state, want):
    assert set(state) == set(want)
    for name in want:
        assert (state[name].dtype, state[name].shape) == (want[name].dtype, want[name].shape), name
        assert state[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in HUB_FOLDERS[:-1]), "early_exit"],
)
def test_hub_orbax_file_hub(goldens, name, tmp_path):
    model, params = ap.from_pretrained(goldens / name)
    save_orbax(model, params, tmp_path / "orbax")
    model, params = ap.from_pretrained(tmp_path / "orbax")
    write_state(tmp_path / "w.safetensors", ap.params_to_torch(model, params))
    found = find_in_file(tmp_path / "w.safetensors", model)
    ap.save_pretrained(model, jax.tree.map(jnp.asarray, found.read()), tmp_path / "hub")
    want = load_file(goldens / name / "model.safetensors")
    assert_same_bits(load_file(tmp_path / "hub" / "model.safetensors"), want)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config == json.loads((goldens / name / "config.json").read_text())


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_checkpoint_as_it_was_and_as_older_ones_are(goldens, name, tmp_path):
    want, model = read(goldens / name).weights, TRAINED[name]
    assert_same_bits(ap.params_to_torch(model, ap.params_from_torch(model, want)), want)
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(value) for key, value in want.items()}
    table = next(key for key in want if key.endswith("patch_embed.pos_embed"))
    old = {**tensors, table: tensors[table][0]}
    older = {f"module._orig_mod.{key}": value for key, value in old.items()}
    for content in (tensors, older | {"n_averaged": torch.tensor(3)}):
        torch.save(content, tmp_path / "in.pth")
        params = find_in_file(tmp_path / "in.pth", model).read()
        write_state(tmp_path / "out.pth", ap.params_to_torch(model, params))
        assert_same_bits(read_state(tmp_path / "out.pth"), want)


def twin_of(model, weights):
    """The PyTorch twin with these weights, so that what is compared with it elsewhere is compared
    with the reference; and torch."""
    torch = pytest.importorskip("torch")
    from adaperceiver_jax.convert.torch_twin import twin

    other = twin(json.loads(config_text(model)))
    other.load_state_dict({key: torch.from_numpy(x) for key, x in weights.items()}, strict=True)
    return other, torch


@pytest.mark.parametrize("name", [name for name in HUB_FOLDERS if name != "early_exit"])
def test_the_pytorch_twin_gives_the_references_outputs(goldens, name):
    golden, (model, _) = read(goldens / name), ap.from_pretrained(goldens / name)
    other, torch = twin_of(model, load_file(goldens / name / "model.safetensors"))
    for i, call in enumerate(golden.cases["calls"]):
        if "token_grans" in call:
            continue
        with torch.inference_mode():
            out = other(
                torch.from_numpy(golden.arrays["images"]),
                num_tokens=call.get("num_tokens"),
                width=call.get("mat_dim"),
                depth=call.get("depth"),
            )
        want = {"logits": golden.arrays[f"logits.{i}"][:, 0]}
        if model.config.output_feat_dim:
            want["features"] = golden.arrays[f"features.{i}"]
        assert set(out) == set(want)
        for key in want:
            np.testing.assert_allclose(out[key], want[key], **OUTPUTS, err_msg=str(call))


def wanted_of_the_twin(golden, name) -> tuple[object, str, dict]:
    """A model, the name of its input, and its outputs in the golden, by name."""
    arrays = golden.arrays
    if name in VARIANTS:
        config = vit_config(golden, name)
        features = arrays["features"][:, config.num_prefix_tokens :]
        return ap.ViT(config), "images", {"logits": arrays["logits"], "features": features}
    if name == "policy_network":
        _, patches, dim = arrays["patches"].shape
        config = ap.PolicyConfig(embed_dim=dim, num_patches=patches, token_choices=4)
        return ap.PolicyNetwork(config), "patches", {"token_logits": arrays["token_logits"]}
    if name == "classification_fourier":
        config = ap.AdaPerceiverConfig(**SIZES, fourier_bands=golden.cases["fourier_bands"])
        return ap.AdaPerceiver(config), "images", {"logits": arrays["logits"][:, 0]}
    if name == "train_depth":
        return TRAINED[name], "images", {"depth": arrays["depth.token.3"][:, 0]}
    maps = arrays["logits.token.3"].transpose(0, 2, 3, 1)
    return TRAINED[name], "images", {"logits": maps}


@pytest.mark.parametrize(
    "name",
    [*VARIANTS, "policy_network", "classification_fourier", "train_segmentation", "train_depth"],
)
def test_the_twins_of_other_models_too(goldens, name):
    golden = read(goldens / name)
    model, inputs, want = wanted_of_the_twin(golden, name)
    other, torch = twin_of(model, golden.weights)
    with torch.inference_mode():
        out = other(torch.from_numpy(golden.arrays[inputs]))
    for key, value in want.items():
        np.testing.assert_allclose(out[key], value, **OUTPUTS)


def test_a_narrower_golden_is_an_ordinary_model(goldens, tmp_path):
    """'classification_plain' has no FFN in its adapters: the reference can say its widths."""
    golden = read(goldens / "classification_plain")
    model, params = ap.from_pretrained(goldens / "classification_plain")
    tried = 0
    for i, call in enumerate(golden.cases["calls"]):
        width, depth = call.get("mat_dim"), call.get("depth")
        if width is None or "token_grans" in call:
            continue
        small, small_params = ap.extract(model, params, width, depth)
        small, unsaid = for_reference(small)
        assert unsaid == ""
        assert not {"max_width", "rope_scale"} & set(config_to_dict(small))
        ap.save_pretrained(small, small_params, tmp_path)
        small, small_params = ap.from_pretrained(tmp_path)
        out = run(small, small_params, golden.images, num_tokens=call.get("num_tokens"))
        want = golden.arrays[f"logits.{i}"][:, 0]
        np.testing.assert_allclose(out.logits, want, **OUTPUTS, err_msg=str(call))
        tried += 1
    assert tried > 0
