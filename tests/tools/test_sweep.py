"""tools/sweep.py: the CSV of a checkpoint, the same after any interruption."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.evaluate import costs
from adaperceiver_jax.evaluate.points import read_points
from adaperceiver_jax.evaluate.sweep import SweepFolder
from tests.small_models import TINY, random_params, run
from tools import sweep as tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, "num_classes": 10}))
    place = tmp_path_factory.mktemp("model") / "tiny"
    ap.save_pretrained(model, random_params(model, 3), place)
    return place


def options(folder, out, *more):
    changes = ("data.validation_count=20", "data.train_count=8", "augment.crop=()")
    data = ("--data", "scenes", *(f"--set={change}" for change in changes))
    return ["--checkpoint", folder, *data, "--batch", "8", "--out", out, *more]


SMALL = ("--tokens", "3,4,16", "--widths", "8,24")


@pytest.mark.slow
def test_a_line_per_sub_network_with_the_accuracy_on_the_images(folder, tmp_path, said):
    out = tmp_path / "results" / "sweep.csv"
    sizes = ("--tokens", "3,4", "--widths", "8,24", "--depths", "1,3")
    text = said(tool, *options(folder, out, *sizes, "--repeats", "1"))
    assert "| tokens | width | depth | top-1 | top-5 | GFLOPs | ms |" in text
    found = read_points(out)
    assert [tuple(p.sub_network.values()) for p in found] == [
        (t, w, l) for t in (3, 4) for w in (8, 24) for l in (1, 3)
    ]
    model, params = ap.from_pretrained(folder)
    scenes = Scenes(20, 16, "validation")
    view = ap.Preprocessing()
    images = np.stack([scenes[i]["image"] for i in range(20)]).astype(np.float32) / 255
    images = (images - np.float32(view.mean)) / np.float32(view.std)
    labels = np.array([scenes[i]["label"] for i in range(20)])
    for p in found[::5]:
        assert p.tokens_are == ("trained" if p.num_tokens == 4 else "interpolated")
        assert min(p.latency_ms, p.memory_mib) > 0
        assert p.accuracy <= p.top5 <= 1
        logits = run(model, params, images, **p.sub_network).logits
        assert p.accuracy == pytest.approx((logits.argmax(-1) == labels).mean())
    assert len({p.accuracy for p in found}) > 1


@pytest.mark.nightly(group="tools")
def test_killed_and_resumed_it_gives_the_same_file(folder, tmp_path, said):
    whole = tmp_path / "whole.csv"
    said(tool, *options(folder, whole, *SMALL, "--no-latency"))
    out = tmp_path / "killed.csv"
    command = [sys.executable, "tools/sweep.py"]
    command += map(str, options(folder, out, *SMALL, "--no-latency"))
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    first = out.with_suffix(".outcomes") / "batch_000000.npz"
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert 1 <= SweepFolder(out.with_suffix(".outcomes")).batches <= 3
    stamp = first.stat().st_mtime_ns
    said(tool, *options(folder, out, *SMALL, "--no-latency"))
    assert out.read_bytes() == whole.read_bytes()
    assert first.stat().st_mtime_ns == stamp  # not computed again


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(folder, tmp_path, said, monkeypatch):
    out = tmp_path / "sweep.csv"
    sizes = ("--tokens", "4,16", "--widths", "8,24", "--depths", "1,3")
    arguments = options(folder, out, *sizes, "--repeats", "1")
    real, calls = costs.measure, []

    def interrupted(*given):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(given[3:5])
        return real(*given)

    monkeypatch.setattr(tool, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.main([str(x) for x in arguments])
    before = SweepFolder(out.with_suffix(".outcomes")).costs()
    assert len(before) == 4
    again = []
    monkeypatch.setattr(tool, "measure", lambda *given: again.append(given[3:5]) or real(*given))
    said(tool, *arguments)
    assert [*calls, *again] == [(t, w) for t in (4, 16) for w in (8, 24)]
    found = {(p.num_tokens, p.width, p.depth): p.latency_ms for p in read_points(out)}
    for sub_network, cost in before.items():
        assert found[sub_network] == pytest.approx(cost.latency_ms, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--widths", "25"), "width=25: must be in"),
        (("--batch", "0"), "--batch=0: must be a multiple of"),
        (("--repeats", "0"), "--repeats=0: must be at least 1"),
        (("--out", "sweep.txt"), r"--out=sweep\.txt: must end in \.csv"),
        (("--set", "model.depth=2"), "--set model.depth: must be a key of data, images or"),
        (("--set", "data.none=2"), "there is no such key"),
    ],
)
def test_what_cannot_be_is_refused(folder, tmp_path, refused, more, message):
    out = tmp_path / "sweep.csv"
    text = refused(tool, *options(folder, out), *more)
    assert re.search(message, text), text
    assert not out.with_suffix(".outcomes").exists()


def test_the_outcomes_of_another_sweep_are_refused(folder, tmp_path, said, refused):
    out = tmp_path / "sweep.csv"
    few = ("--tokens", "4", "--widths", "8", "--no-latency")
    said(tool, *options(folder, out, *few))
    assert {p.latency_ms for p in read_points(out)} == {None}
    text = refused(tool, *options(folder, out, *few, "--set", "data.validation_count=12"))
    assert re.search("holds the sweep of another.*name another --out", text)
    assert re.search(
        "--data:.*say which images", refused(tool, "--checkpoint", folder, "--out", out)
    )
