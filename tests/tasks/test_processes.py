"""Several processes count as one does, to the last pixel."""

import pytest

from tests.processes import said_by_processes

PROGRAM = """
import json
import sys

import jax
import numpy as np

from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.data.pipeline import evaluation_batches, own_places, to_devices
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
    sharding = batch_sharding(mesh)
    places = own_places(sharding, 4)
    batches = to_devices(
        evaluation_batches(Ragged(), 4, transform=prepare.evaluate, places=places), sharding
    )
    trained = evaluate(task, programs, programs.begin(params), {}, batches)
    own = own_size_batches(Ragged(), prepare.own_size, 2)
    points = sweep_dense(task, params, own, (4, 5), (24,), own_size=True)
    swept = [[p.num_tokens, p.resolution, dict(p.scores)] for p in points]
    print(json.dumps({"trained": trained, "swept": swept}))
"""


@pytest.mark.nightly(group="processes")
def test_two_processes_report_what_one_does(tmp_path):
    """Whole numbers exactly; the loss, a sum of fractions, to rounding."""
    (alone,) = said_by_processes(PROGRAM, 1, tmp_path, timeout=400)
    for part in said_by_processes(PROGRAM, 2, tmp_path, timeout=400):
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
