"""main.py as it is called: what is wrong is one readable line and a status that is not 0."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = "--config=configs/scratch.py:runlocal"
MISTAKES = [
    (
        [SCRATCH, "--config.optimizr.lr=3"],
        r"config\.optimizr\.lr: there is no such key; did you mean config\.optimizer\.lr\?",
    ),
    (
        ["--config=configs/scratch.py:runlocal,optimizr.lr=3"],
        r"argument 'optimizr\.lr': there is no such key; did you mean 'optimizer\.lr'\?",
    ),
    ([SCRATCH, "--config.batch_size=abc"], r"--config\.batch_size=abc: invalid literal for int"),
    ([SCRATCH, "--config.length=soon"], r"config\.length='soon': must read like '50 epochs'"),
    (["--config=configs/not_there.py"], r"No such file or directory: 'configs/not_there\.py'"),
    ([SCRATCH, "--config.data.dir=not/there"], r"config\.data\.dir='not/there': there is no such"),
    ([SCRATCH, "--config.task=distill", "--config.teacher.path="], "distillation needs a teach"),
    (["--config=FOLDER/mine.py"], r"config\.(bach_size|optimizer\.lerning_rate).*no such key"),
]
MINE = """
from configs import common
def get_config():
    config = common.base()
    config.optimizer.lerning_rate = 1.0
    config.bach_size = 8
    return config
"""
# Importing takes longer than refusing, so one process imports and has a child for each call, which
# ends at once: Python takes a second to clear away.
CALLS = """
import json, os, runpy, sys
import adaperceiver_jax.tasks.make, adaperceiver_jax.train.loop
for i, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{sys.argv[2]}/{i}", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[:] = ["main.py", *arguments]
        try:
            runpy.run_path("main.py", run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            os._exit(end.code if isinstance(end.code, int) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """(exit status, lines of stderr) of each mistake and, last, of a call without a folder."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "mine.py").write_text(MINE)
    workdir = f"--workdir={folder / 'run'}"
    lists = [[*arguments, workdir] for arguments, _ in MISTAKES] + [[SCRATCH]]
    given = json.dumps(lists).replace("FOLDER", str(folder))
    command = [sys.executable, "-W", "ignore", "-c", CALLS, given, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not (folder / "run").exists()
    codes = [int(line) for line in done.stdout.split()]
    return [(code, (folder / str(i)).read_text().splitlines()) for i, code in enumerate(codes)]


@pytest.mark.parametrize("i", range(len(MISTAKES)), ids=lambda i: MISTAKES[i][0][-1])
def test_a_mistake_is_one_readable_line_and_makes_no_folder(calls, i):
    code, lines = calls[i]
    assert (code, len(lines)) == (1, 1), lines
    assert re.search(MISTAKES[i][1], lines[0])


def test_without_a_folder_it_says_which_flag_is_missing(calls):
    code, lines = calls[-1]
    assert (code, len(lines)) == (1, 1), lines
    assert "--workdir" in lines[0]


def test_an_argument_is_cut_at_its_own_commas_only():
    config = common.argument(
        common.base(),
        "evaluation.sub_networks=((8,36,2),(4,36,2)),teacher.path='a,b',length=3 steps",
        common.tiny,
    )
    assert config.evaluation.sub_networks == ((8, 36, 2), (4, 36, 2))
    assert (config.teacher.path, config.length) == ("a,b", "3 steps")
