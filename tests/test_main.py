"""main.py as it is called: what is wrong is one readable line and a status that is not 0."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import common

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = "--config=configs/scratch.py:runlocal"


def call(*arguments) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [SCRATCH, "--config.optimizr.lr=3"],
            "config.optimizr.lr: there is no such key; did you mean config.optimizer.lr?",
        ),
        (
            ["--config=configs/scratch.py:runlocal,optimizr.lr=3"],
            "argument 'optimizr.lr': there is no such key; did you mean 'optimizer.lr'?",
        ),
        (
            [SCRATCH, "--config.batch_size=abc"],
            "--config.batch_size=abc: invalid literal for int()",
        ),
        ([SCRATCH, "--config.length=soon"], "config.length='soon': must read like '50 epochs'"),
        (["--config=configs/not_there.py"], "No such file or directory: 'configs/not_there.py'"),
        ([SCRATCH, "--config.data.dir=not/there"], "config.data.dir='not/there': there is no such"),
        (
            [SCRATCH, "--config.task=distill", "--config.teacher.path="],
            "distillation needs a teach",
        ),
    ],
)
def test_a_mistake_is_one_readable_line(tmp_path, arguments, message):
    code, lines = call(*arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 1
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_key_mistyped_in_a_file_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.base()\n"
        "    config.optimizer.lerning_rate = 1.0\n"
        "    config.bach_size = 8\n"
        "    return config\n"
    )
    code, lines = call(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert code == 1
    assert len(lines) == 1, lines
    assert "there is no such key" in lines[0]
    assert "config.bach_size" in lines[0] or "config.optimizer.lerning_rate" in lines[0]


def test_without_a_folder_it_says_which_flag_is_missing():
    code, lines = call(SCRATCH)
    assert code == 1
    assert "--workdir" in lines[0]
    assert len(lines) == 1, lines


def test_an_argument_is_cut_at_its_own_commas_only():
    config = common.argument(
        common.base(),
        "evaluation.sub_networks=((8,36,2),(4,36,2)),teacher.path='a,b',length=3 steps",
        common.tiny,
    )
    assert config.evaluation.sub_networks == ((8, 36, 2), (4, 36, 2))
    assert (config.teacher.path, config.length) == ("a,b", "3 steps")
