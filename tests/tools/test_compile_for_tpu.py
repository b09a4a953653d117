"""tools/compile_for_tpu.py: a small step, compiled by the TPU's own compiler."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from adaperceiver_jax.aot import chips
from adaperceiver_jax.data.pipeline import to_devices
from adaperceiver_jax.tasks.shapes import make_step
from adaperceiver_jax.train.loop import LAG
from tools import compile_for_tpu as tool

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = str(ROOT / "configs" / "scratch.py")
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    ("config", "topology", "said"),
    [
        (SCRATCH, "v9:2x2", "the chip must be one of v4, v5e, v5p, v6e"),
        (SCRATCH, "v5e:3", "v5e takes 2 sides"),
        ("configs/none.py", "v5e:2x2", "--config=configs/none.py: there is no such file"),
        ("configs/common.py", "v5e:2x2", "--config=configs/common.py: is no config"),
        (f"{SCRATCH}:batch=3", "v5e:2x2", "argument 'batch': there is no such key"),
        (f"{SCRATCH}:batch_size=0", "v5e:2x2", "config.batch_size=0: must be at least 1"),
        (SCRATCH, "v5e-256", "is a slice; say v5e:16x16"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(refused, config, topology, said):
    assert said in refused(tool, "--config", config, "--topology", topology)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def get_config(arg=''):\n    return 1 / 0",
            "line 2: ZeroDivisionError: division by zero",
        ),
        ("x = 1\ndef get_config(\n", "line 2: SyntaxError: '(' was never closed"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError: No module named"),
        ("def get_config(arg=''):\n    return 3", "mine.py: AttributeError: 'int' object has no"),
    ],
)
def test_a_mistake_in_a_config_is_said_in_one_line(refused, tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    lines = refused(tool, "--config", str(path), "--topology", "v5e:2x2").strip().splitlines()
    assert f"--config={path}: " in lines[-1]
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_as_many_batches_are_held_as_are_counted():
    """As the loop does: the next is asked for when the first of the last LAG steps is done."""
    most = done = drawn = 0

    def draw():
        nonlocal most, drawn
        for drawn in range(1, 21):
            most = max(most, drawn - done)
            yield {"image": np.zeros(1)}

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for step, _ in enumerate(to_devices(draw(), sharding), 1):
        most = max(most, drawn - done)
        done = max(0, step - LAG)
    assert most == 1 + tool.AHEAD


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_a_mesh_that_would_tear_the_chips_layout_is_refused_with_what_fits(refused):
    said = refused(tool, "--config", f"{SCRATCH}:mesh.fsdp=16", "--topology", "v6e:8x8")
    assert "config.mesh.fsdp=16: the 64 chips are laid out 8 x 8 x 1" in said
    assert said.rstrip().endswith("use 1 or 8 or 64")


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_what_one_of_several_refuses_is_said_before_any_is_compiled(refused, monkeypatch):
    monkeypatch.setattr(tool, "compile_step", lambda *_: pytest.fail("compiled"))
    config = f"{SCRATCH}:runlocal,batch_size=64"
    topologies = ("--topology", "v5e:2x2", "--topology", "v4:2x2x3")
    assert "batch_size=64: cannot be split over 12 devices" in refused(
        tool, "--config", config, *topologies
    )


def test_without_libtpu_it_says_how_to_get_it(refused, monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tool, "read_config", lambda text: None)
    said = refused(tool, "--config", SCRATCH, "--topology", "v5e:2x2")
    assert "pip install -e '.[tpu]'" in said


def compiled(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "compile_for_tpu.py", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "XLA_FLAGS": ""},
    )


def cells(text: str, row: str) -> list[float]:
    found = re.search(rf"^\| {row} \| (.*) \|$", text, re.MULTILINE)
    assert found is not None, text
    return [float(cell) for cell in found[1].split(" | ")]


SMALL = (
    f"{SCRATCH}:runlocal,optimizer.name=nadamw,batch_size=64,compute.remat=False,"
    "model.embed_dim=256,model.num_heads=4,model.depth=2,model.widths=(256,),loss.depths=False,"
    "compute.dtype=bfloat16"
)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_a_small_step_is_lean_and_costs_what_the_formula_says():
    """On 4 chips, once with its parameters whole on each, and once split over two, gradients summed
    in bfloat16."""
    other = f"{SMALL},mesh.fsdp=2,mesh.gradients=bfloat16"
    done = compiled("--config", SMALL, "--config", other, "--topology", "v5e:2x2")
    assert done.returncode == 0, done.stderr
    whole, split = done.stdout.split("### ")[1:]
    assert "4 chips, hosts 1 (data 4, fsdp 1), 64 images a step" in whole
    assert "4 chips, hosts 1 (data 2, fsdp 2), 64 images a step" in split
    for page in (whole, split):
        assert "**no**" not in page
        assert page.count("- yes: ") == 10
    assert "no large array is replicated but by a rule: 0 of 4 MiB or more" in split
    for page, dtype in ((whole, "f32"), (split, "bf16")):
        reduced = re.search("gradients are reduced once: .* trained: (.*)$", page, re.MULTILINE)
        assert reduced is not None
        sums = {
            kind: float(amount) for amount, kind in re.findall(r"([\d.]+) MB (\w+)", reduced[1])
        }
        assert sums[dtype] > 0.8 * sum(sums.values()), sums
    step = make_step(tool.read_config(SMALL))
    formula = step.task.train_flops(step.apply[1]) * 64 / 4
    for page in (whole, split):
        gradients, apply = cells(page, "TFLOPs of matrix products")
        # The formula takes the backward pass as twice the forward; images have no gradient.
        assert 1e12 * gradients == pytest.approx(formula, rel=0.05)
        assert apply == 0
    arguments = [cells(page, r"arguments \(GiB\)")[1] for page in (whole, split)]
    assert arguments[1] < 0.75 * arguments[0]
    assert len(re.findall(r"^\| .* \| v5e:2x2 \| [42] x [12] \| 64 \|", done.stdout, re.M)) == 2


FEATURES = (
    f"{ROOT / 'configs' / 'features.py'}:runlocal,optimizer.name=nadamw,batch_size=64,"
    "model.embed_dim=256,model.num_heads=4,model.widths=(256,),compute.dtype=bfloat16,"
    "compute.remat=True,mesh.fsdp=2"
)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_a_step_with_every_readout_and_a_teacher_is_lean():
    """Features after every block, recomputed blocks: each gradient is still summed once."""
    done = compiled("--config", FEATURES, "--topology", "v5e:2x2")
    assert done.returncode == 0, done.stderr
    assert "**no**" not in done.stdout
    assert done.stdout.count("- yes: ") == 10
    step = make_step(tool.read_config(FEATURES))
    formula = step.task.train_flops(step.apply[1]) * 64 / 4
    # Attention's scores are computed twice, and for all latents where few are read.
    assert 0.9 < formula / 1e12 / cells(done.stdout, "TFLOPs of matrix products")[0] < 1.02


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_a_step_that_does_not_fit_has_its_row_and_ends_with_1():
    config = (
        f"{SCRATCH}:runlocal,optimizer.name=nadamw,batch_size=4096,data.image_size=512,"
        "model.max_latent_tokens=1024,model.token_granularities=(1024,)"
    )
    done = compiled("--config", config, "--topology", "v5e:1x1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"gradients needs [\d.]+ GiB of a chip's 15.75", done.stdout)
