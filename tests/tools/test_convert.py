"""tools/convert.py: any format to any other, what it says, what it refuses, what it leaves."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adaperceiver_jax as ap
from tests.convert.test_names import MODELS, same
from tests.small_models import TINY, random_params
from tools import convert as tool

torch = pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_through_every_format_and_back(sources, name, tmp_path, said):
    """hub -> orbax -> .pth -> .safetensors -> hub."""
    config = sources / name / "config.json"
    text = said(tool, sources / name, tmp_path / "orbax", "--to", "orbax")
    assert "nothing missing, nothing left over" in text
    assert re.search(r"all \d+ tensors read back the same; in PyTorch the same outputs to", text)
    said(tool, tmp_path / "orbax", tmp_path / "w.pth")
    said(tool, tmp_path / "w.pth", tmp_path / "w.safetensors", "--model", config)
    said(tool, tmp_path / "w.safetensors", tmp_path / "hub", "--model", config)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "hub" / file).read_bytes() == (sources / name / file).read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"orbax", "w.pth", "w.safetensors", "hub"}


def test_a_sub_network_and_whether_the_reference_can_say_it(sources, tmp_path, said):
    cut = ("--width", "9", "--depth", "2")
    text = said(tool, sources / "classification", tmp_path / "small", *cut)
    assert "cut to AdaPerceiver, 0.0 M parameters, width 9, depth 2" in text
    assert "loads here, but not in the reference: its constructor cannot say a width of 9" in text
    small, params = ap.from_pretrained(tmp_path / "small")
    want, want_params = ap.extract(*ap.from_pretrained(sources / "classification"), 9, 2)
    assert small == want
    assert same(params, want_params)
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY, use_embed_ffn=False))
    ap.save_pretrained(model, random_params(model), tmp_path / "plain")
    assert "not in the reference" not in said(tool, tmp_path / "plain", tmp_path / "cut", *cut)
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert "max_width" not in config
    assert int(24 * config["ffn_ratio"]) == int(9 * 2.57)


@pytest.mark.slow
def test_a_file_of_the_papers_model_needs_no_config(tmp_path, said):
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(depth=1, patch_size=112))
    params = random_params(model)
    ap.save_pretrained(model, params, tmp_path / "hub")
    state = load_file(tmp_path / "hub" / "model.safetensors")
    old = {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}
    old["module.patch_embed.pos_embed"] = old["module.patch_embed.pos_embed"][0]
    torch.save(old | {"n_averaged": torch.tensor(9)}, tmp_path / "ema.pth")
    text = said(tool, tmp_path / "ema.pth", tmp_path / "again")
    assert "no tensor tells these, so the paper's are taken" in text
    assert "num_heads=13" in text
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "hub" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{hub}", "{tmp}/x.pth", "--to", "hub"], "must be a folder's name"),
        (["{hub}", "{tmp}/x", "--to", "torch"], r"must end in \.safetensors"),
        (["{hub}", "{hub}"], "is there already; move it away"),
        (["{hub}", "{tmp}/x", "--width", "25"], r"width=25: must be in 1\.\.24"),
        (["{hub}", "{tmp}/x", "--model", "{hub}"], "only for a file"),
        (["{tmp}/nowhere", "{tmp}/x"], "not a checkpoint folder, it has no config.json"),
        (["{vit}", "{tmp}/x", "--depth", "1"], "only an AdaPerceiver has sub-networks"),
        (["{hub}", "{tmp}/x", "--step", "3"], "step=3: only for a run's folder"),
        (["{hub}", "{tmp}/x", "--revision", "v1"], "revision=v1: only for a hub id"),
        (["{tmp}/no/w.pth", "{tmp}/x"], r"w\.pth: there is no such file"),
        (["{hub}", "{tmp}/x", "--to", "onnx"], "invalid choice: 'onnx'"),
    ],
)
def test_what_cannot_be_is_refused(sources, tmp_path, arguments, message, refused):
    places = {"hub": sources / "classification", "vit": sources / "vit", "tmp": tmp_path}
    text = refused(tool, *(argument.format(**places) for argument in arguments))
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("read_head.cattn.q.weight"), r"missing: read_head\.cattn\.q\.weight"),
        (lambda s: s.update(more=np.ones(1)), "left over: more"),
        (lambda s: s.update({"process_latents.token": np.ones(3)}), r"token is \(3,\), the model"),
        (
            lambda s: np.copyto(s["read_head.cattn.q.weight"], np.nan),
            r"w\.safetensors: not finite: read_head\.cattn\.q\.weight \(1 in all\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(sources, tmp_path, change, message, refused):
    state = load_file(sources / "classification" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    config = sources / "classification" / "config.json"
    text = refused(tool, tmp_path / "w.safetensors", tmp_path / "x", "--model", config)
    assert re.search(message, text), text
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_wrong_outcome_is_not_kept(sources, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(tool, "torch_difference", lambda *_: 0.5)
    text = refused(tool, sources / "classification", tmp_path / "x")
    assert "in PyTorch the same outputs to 5.0e-01" in text
    assert "nothing is kept" in text
    monkeypatch.setattr(tool, "read_back", lambda *_: {})
    assert "not written as read" in refused(tool, sources / "classification", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_tensors_are_compared(sources, tmp_path, monkeypatch, said, refused):
    """An empty folder may be there."""
    monkeypatch.setattr(tool, "have_torch", lambda: False)
    (tmp_path / "x").mkdir()
    text = said(tool, sources / "classification", tmp_path / "x")
    assert "PyTorch is not installed, so it was not run there" in text
    assert (tmp_path / "x" / "model.safetensors").is_file()
    assert "needs PyTorch" in refused(tool, sources / "classification", tmp_path / "x.pth")


def test_float64_goes_everywhere_but_to_orbax(sources, tmp_path, said, refused):
    state = load_file(sources / "policy" / "model.safetensors")
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    text = refused(tool, tmp_path / "wide.safetensors", tmp_path / "x", "--to", "orbax")
    assert "holds float64, which JAX arrays are not" in text
    said(tool, tmp_path / "wide.safetensors", tmp_path / "x.pth")
