"""Several processes count as one does, to the last pixel."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
import sys

import jax
import numpy as np

from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.data.pipeline import evaluation_batches, to_devices
from adaperceiver_jax.tasks.dense_sweep import own_size_batches, sweep_dense
from adaperceiver_jax.train.evaluation import evaluate
from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import batch_sharding, make_mesh
from adaperceiver_jax.train.step import make_programs
from tests.small_models import random_params
from tests.tasks.test_dense import CLASSES, segment
from tests.tasks.test_dense_sweep import Ragged
from tests.train.small import gradient_descent

if __name__ == "__main__":
    place, count, index = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(f"localhost:{place}", int(count), int(index))
    assert jax.process_count() == int(count) == len(jax.devices())
    task = segment()
    mesh = make_mesh(MeshSettings())
    programs = make_programs(task, gradient_descent(0.1), mesh, seed=0, clip=1.0, ema=0.9)
    params = jax.device_get(random_params(task.model))
    prepare = Preparation(size=(16, 16), inputs=task.inputs, num_classes=CLASSES)
    batches = to_devices(
        evaluation_batches(Ragged(), 4, transform=prepare.evaluate), batch_sharding(mesh)
    )
    trained = evaluate(task, programs, programs.begin(params), {}, batches)
    own = own_size_batches(Ragged(), prepare.own_size, 2)
    points = sweep_dense(task, params, own, (4, 5), (24,), own_size=True)
    swept = [[p.num_tokens, p.resolution, dict(p.scores)] for p in points]
    print(json.dumps({"trained": trained, "swept": swept}))
"""


def scored_by(count: int, tmp_path: Path) -> list[dict]:
    """What each of so many processes, with a device each, reports."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    started = [
        subprocess.Popen(
            [sys.executable, program, str(place), str(count), str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        said = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path):
    """Whole numbers exactly; the loss, a sum of fractions, to rounding."""
    (alone,) = scored_by(1, tmp_path)
    for part in scored_by(2, tmp_path):
        for name, value in alone["trained"].items():
            if not name.endswith("loss"):
                assert part["trained"][name] == value, name
        assert part["trained"] == pytest.approx(alone["trained"], rel=1e-5)
        assert len(part["swept"]) == len(alone["swept"]) == 4
        for ours, want in zip(part["swept"], alone["swept"], strict=True):
            assert ours[:2] == want[:2]
            assert ours[2] == pytest.approx(want[2], rel=1e-5)
            for name in ("miou", "mean_accuracy", "accuracy"):
                assert ours[2][name] == want[2][name]
