"""tools/export.py: one sub-network as a program that JAX alone runs, or ONNX."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert.export import call_program
from tests.convert.test_names import MODELS
from tests.small_models import random_params, run
from tools import export as tool

NIGHTLY = pytest.mark.nightly(group="tools")


def some_nightly(*names):
    """The first name and, nightly, the others."""
    return [names[0], *(pytest.param(name, marks=NIGHTLY) for name in names[1:])]


ALONE = """
import sys
for name in ("adaperceiver_jax", "flax", "orbax"):
    sys.modules[name] = None
import jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1] + "/program.jax", "rb").read()))
out = program.call(dict(np.load(sys.argv[1] + "/weights.npz")), np.load(sys.argv[2]))
np.save(sys.argv[3], out["logits"])
"""


def images(model, batch):
    shape = (batch, *model.example_inputs().shape[1:])
    return np.random.default_rng(batch).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
def test_any_batch_through_one_program_which_jax_alone_runs(sources, tmp_path, said):
    name = "classification"
    model = MODELS[name]
    cut = dict(num_tokens=5, width=model.config.widths[0], depth=1)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in cut.items()]
    text = said(tool, sources / name, tmp_path / "out", *options)
    assert "images dynamic x" in text
    assert "of the largest" in text
    for batch in (1, 7):
        x = images(model, batch)
        want = run(model, random_params(model), x, **cut).logits
        got = call_program(tmp_path / "out", x)["logits"]
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / name) for name in ("out", "x.npy", "y.npy")]
    done = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, rtol=2e-5, atol=2e-5)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert (about["num_tokens"], about["images"][0], about["model"]["depth"]) == (5, "dynamic", 1)


@pytest.mark.parametrize(
    "name",
    some_nightly("policy", "vit", "segmentation", "depth", "dense", "distillation", "segmenter"),
)
def test_every_model(sources, name, tmp_path, said):
    said(tool, sources / name, tmp_path / "out", "--batch", "2", "--platforms", "cpu")
    model = MODELS[name]
    x = images(model, 2)
    want = run(model, random_params(model), x)
    got = call_program(tmp_path / "out", x)
    assert got
    for key, value in got.items():
        np.testing.assert_allclose(value, getattr(want, key), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="shape"):
        call_program(tmp_path / "out", images(model, 3))


def test_half_precision_weights_are_exported_in_float32_and_a_head_of_zeros_is_no_error(
    tmp_path, said
):
    model = MODELS["policy"]
    half = jax.tree.map(lambda x: x.astype("bfloat16"), random_params(model))
    half["head_tokens"]["kernel"] = half["head_tokens"]["kernel"] * 0
    ap.save_pretrained(model, half, tmp_path / "half")
    text = said(tool, tmp_path / "half", tmp_path / "out", "--platforms", "cpu")
    assert "of the largest" in text
    with np.load(tmp_path / "out" / "weights.npz") as weights:
        assert {weights[name].dtype for name in weights} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", some_nightly("vit", "classification", "segmentation"))
def test_onnx(sources, name, tmp_path, said):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    said(tool, sources / name, tmp_path / "out", "--to", "onnx", "--batch", "2")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    model = MODELS[name]
    x = images(model, 2)
    want = run(model, random_params(model), x)
    for output in session.get_outputs():
        got = session.run([output.name], {"images": x})[0]
        np.testing.assert_allclose(got, getattr(want, output.name), rtol=1e-4, atol=1e-4)


def test_onnx_without_its_converter_says_what_it_needs(sources, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    text = refused(tool, sources / "classification", tmp_path / "out", "--to", "onnx")
    assert "ONNX needs jax2onnx: pip install" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "classification",
            ["--platforms", "cpu,gpu"],
            "--platforms=gpu: must be some of",
        ),
        ("classification", ["--to", "onnx", "--batch", "dynamic"], "is made for one size"),
        ("classification", ["--batch", "0"], "'0': must be at least 1, or 'dynamic'"),
        ("classification", ["--width", "25"], "width=25: must be in 1..24"),
        ("vit", ["--depth", "1"], "depth=1: a ViT has none"),
    ],
)
def test_what_cannot_be_is_refused(sources, tmp_path, name, arguments, message, refused):
    assert message in refused(tool, sources / name, tmp_path / "out", *arguments)
    assert "is there already" in refused(tool, sources / name, sources / name)
    assert not list(tmp_path.iterdir())


def test_a_wrong_outcome_is_not_kept(sources, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(tool, "relative_difference", lambda *_: float("inf"))
    text = refused(tool, sources / "classification", tmp_path / "out", "--platforms", "cpu")
    assert "nothing is kept" in text
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_run_is_said(sources, tmp_path, said):
    text = said(tool, sources / "policy", tmp_path / "out", "--platforms", "tpu")
    assert "NOT run here, so not compared" in text
