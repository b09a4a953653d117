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

from adaperceiver_jax.data.pipeline import to_devices
from adaperceiver_jax.train.loop import LAG
from tools import compile_for_tpu as tool
from tools.pod_report import topology
from tools.shapes import make_step

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = str(ROOT / "configs" / "scratch.py")
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")


@pytest.mark.parametrize(
    ("config", "topology", "said"),
    [
        (SCRATCH, "v9:2x2", "'v9:2x2': the chip must be one of v4, v5e, v5p, v6e"),
        (SCRATCH, "v5e:4x4x4", "v5e takes 2 sides up to 16x16, the first two even, or 1x1"),
        (SCRATCH, "v5e:3x3", "v5e takes 2 sides"),
        (SCRATCH, "v5e:0x4", "v5e takes 2 sides"),
        (SCRATCH, "v5litepod-8", "is a slice; say v5e:2x4"),
        (SCRATCH, "v5p-128", "is a slice; say v5p:4x4x4"),  # named by cores, two per chip
        ("configs/none.py", "v5e:2x2", "--config=configs/none.py: there is no such file"),
        ("configs/common.py", "v5e:2x2", "--config=configs/common.py: is no config"),
        (f"{SCRATCH}:batch_size=0", "v5e:2x2", "config.batch_size=0: must be at least 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(refused, config, topology, said):
    assert said in refused(tool, "--config", config, "--topology", topology)


def test_a_mistake_in_a_config_is_said_in_one_line(refused, tmp_path):
    path = tmp_path / "mine.py"
    for text, said in (
        ("def get_config(arg=''):\n    return 1 / 0", "line 2: ZeroDivisionError: division by"),
        ("x = 1\ndef get_config(\n", "line 2: SyntaxError: '(' was never closed"),
        ("def get_config(arg=''):\n    return 3", "AttributeError: 'int' object has no"),
    ):
        path.write_text(text)
        lines = refused(tool, "--config", path, "--topology", "v5e:2x2").strip().splitlines()
        assert re.search(rf"--config={path}: .*{re.escape(said)}", lines[-1])
        assert not any("Traceback" in line for line in lines)


def test_the_batches_held_beside_a_program_are_those_that_the_loop_holds():
    """The next is asked for when the first of the last LAG steps is done."""
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


@needs_libtpu
def test_what_a_topology_refuses_is_said_before_any_is_compiled(refused, monkeypatch):
    monkeypatch.setattr(tool, "compile_step", lambda *_: pytest.fail("compiled"))
    said = refused(tool, "--config", f"{SCRATCH}:mesh.fsdp=16", "--topology", "v6e:8x8")
    assert "config.mesh.fsdp=16: the 64 chips are laid out 8 x 8 x 1" in said
    assert said.rstrip().endswith("use 1 or 8 or 64")
    config = f"{SCRATCH}:runlocal,batch_size=64"
    topologies = "--topology", "v5e:2x2", "--topology", "v4:2x2x3"
    said = refused(tool, "--config", config, *topologies)
    assert "batch_size=64: cannot be split over 12 devices" in said


def test_without_libtpu_it_says_how_to_get_it(refused, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tool, "read_config", lambda text: None)
    said = refused(tool, "--config", SCRATCH, "--topology", "v5e:2x2")
    assert "pip install -e '.[tpu]'" in said


def compiled(*arguments: str) -> subprocess.CompletedProcess:
    """The command with JAX as users have it, not as tests set it."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, ROOT / "tools" / "compile_for_tpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=plain)


def cells(text: str, row: str) -> list[float]:
    found = re.search(rf"^\| {row} \| (.*) \|$", text, re.MULTILINE)
    assert found is not None, text
    return [float(cell) for cell in found[1].split(" | ")]


SMALL = (
    "runlocal,optimizer.name=nadamw,batch_size=64,model.embed_dim=256,model.num_heads=4,"
    "model.widths=(256,),compute.dtype=bfloat16"
)
LABELS = f"{SCRATCH}:{SMALL},compute.remat=False,model.depth=2,loss.depths=False"
FEATURES = f"{ROOT / 'configs' / 'features.py'}:{SMALL},compute.remat=True,mesh.fsdp=2"


@pytest.mark.nightly(group="pods")
@needs_libtpu
def test_a_small_step_is_lean_and_costs_what_the_formula_says():
    """On 4 chips: parameters whole on each; split over two, gradients summed in bfloat16; with a
    teacher and features after every block, recomputed, of which each gradient is summed once."""
    configs = LABELS, f"{LABELS},mesh.fsdp=2,mesh.gradients=bfloat16", FEATURES
    named = (word for config in configs for word in ("--config", config))
    done = compiled(*named, "--topology", "v5e:2x2")
    assert done.returncode == 0, done.stderr
    pages = whole, split, features = done.stdout.split("### ")[1:]
    assert "4 chips, hosts 1 (data 4, fsdp 1), 64 images a step" in whole
    assert "4 chips, hosts 1 (data 2, fsdp 2), 64 images a step" in split
    for page, config in zip(pages, configs, strict=True):
        assert "**no**" not in page
        assert page.count("- yes: ") == 10
        step = make_step(tool.read_config(config))
        formula = step.task.train_flops(step.apply[1]) * 64 / 4
        gradients, apply = cells(page, "TFLOPs of matrix products")
        # The formula takes the backward pass as twice the forward, but images have no gradient.
        # Features compute attention's scores twice, and for all latents where few are read.
        least, most = (0.9, 1.02) if page is features else (0.95, 1.05)
        assert least < formula / 1e12 / gradients < most
        assert apply == 0
    for page, dtype in ((whole, "f32"), (split, "bf16")):  # the largest sums come first
        assert re.search(rf"gradients are reduced once: .* trained: [\d.]+ MB {dtype}", page)
    arguments = [cells(page, r"arguments \(GiB\)")[1] for page in (whole, split)]
    assert arguments[1] < 0.75 * arguments[0]
    assert len(re.findall(r"^\| .* \| v5e:2x2 \| [42] x [12] \| 64 \|", done.stdout, re.M)) == 3


@pytest.mark.nightly(group="pods")
@needs_libtpu
def test_a_step_that_does_not_fit_has_its_row_and_ends_with_1():
    config = (
        f"{SCRATCH}:runlocal,optimizer.name=nadamw,batch_size=4096,data.image_size=512,"
        "model.max_latent_tokens=1024,model.token_granularities=(1024,)"
    )
    done = compiled("--config", config, "--topology", "v5e:1x1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"gradients needs [\d.]+ GiB of a chip's 15.75", done.stdout)
