"""tools/benchmark_data.py: a table of where the time goes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config
from configs import finetune_in1k
from tools.benchmark_data import measure

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"images": 8, "batch": 4, "batches": 2}


def run(**options):
    """The command on made-up photographs, loaded by a process beside it."""
    given = {"config": "configs/finetune_in1k.py", "config.data.workers": 1, "made": 4, **options}
    command = ["tools/benchmark_data.py", *(f"--{name}={x}" for name, x in given.items())]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_every_step_is_timed_and_the_whole():
    done = run(**SMALL)
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^(\S.*?) +([\d.]+) +(-?[\d.]+)% +(\d+)$", done.stdout, re.MULTILINE)
    names = ["read", "decoded", "cut and resized", "mirrored", "RandAugment", "whole pipeline"]
    assert [step[0] for step in steps] == names
    for _, milliseconds, _, rate in steps[1:]:
        assert float(rate) == pytest.approx(1000 / float(milliseconds), rel=0.01, abs=0.6)
    assert re.search(r"whole pipeline, 1 process on 1 of \d+ cores?: \d+ images/s", done.stdout)
    assert "4 made-up JPEGs of 500 x 375" in done.stdout
    done = run(images=0)
    assert (done.returncode, done.stderr) == (1, "ValueError: --images=0: must be at least 1\n")


def test_images_that_are_rendered_are_refused():
    config = from_config(RunConfig, finetune_in1k.get_config("runlocal").to_dict())
    with pytest.raises(ValueError, match="is rendered, not read; give a data set, or --made=256"):
        measure(config, made=0, **SMALL)
