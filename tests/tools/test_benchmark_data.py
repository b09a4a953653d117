"""tools/benchmark_data.py: a table of where the time goes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import sets

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "tools/benchmark_data.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_step_is_timed_and_the_whole(tmp_path):
    config = "--config=configs/finetune_in1k.py"
    small = ("--images=8", "--batch=4", "--batches=2")
    code, out, err = run(config, "--made=4", "--config.data.workers=0", *small)
    assert code == 0, err
    steps = re.findall(r"^(\S.*?) +([\d.]+) +(-?[\d.]+)% +(\d+)$", out, re.MULTILINE)
    names = ["read", "decoded", "cut and resized", "mirrored", "RandAugment", "whole pipeline"]
    assert [step[0] for step in steps] == names
    for _, milliseconds, _, rate in steps[1:]:
        assert float(rate) == pytest.approx(1000 / float(milliseconds), rel=0.01, abs=0.6)
    assert re.search(r"whole pipeline, 1 thread on 1 of \d+ cores?: \d+ images/s, ", out)
    assert "4 made-up JPEGs of 500 x 375" in out

    source = sets.as_folder(tmp_path)
    plain = ("--config.augment.rand_augment=0", "--config.augment.jitter=(0.2,0.2,0.2,0.1)")
    where = (f"--config.data.source={source}", "--config.data.workers=0")
    code, out, err = run(config, *where, *plain, *small)
    assert code == 0, err
    assert "ClassFolders" in out
    assert "colours changed" in out
    assert "RandAugment" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/finetune_in1k.py:runlocal"], "is rendered, not read"),
        (["--config=configs/finetune_in1k.py", "--images=0"], "--images=0: must be at least 1"),
        (["--config=configs/finetune_in1k.py"], "config.data.source='tfds:imagenet2012'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    code, _, err = run(*arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
