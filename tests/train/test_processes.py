"""Where a process finds its place, and what it is told where it has none."""

from types import SimpleNamespace

import jax
import pytest

from adaperceiver_jax.train import processes
from adaperceiver_jax.train.processes import Place, find_place, stop, wait_for_all
from tests.processes import said_by_processes

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets its variables, and no others that say anything."""

    def use(*values: str, **others: str) -> None:
        for name in (*NAMES, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in (*zip(NAMES, values, strict=False), *others.items()):
            monkeypatch.setenv(name, value)

    return use


def test_a_place_comes_from_the_environment_or_a_cluster_that_is_asked(environment):
    environment()
    assert find_place(False, 1) is None
    assert wait_for_all("anywhere", "word") == ["word"]
    environment("10.0.0.2:8482", "4", "3")
    assert find_place(False, 1) == find_place(True, 1) == Place("10.0.0.2:8482", 4, 3)
    environment(**SLURM)  # a job's shell, in which one process is tried
    assert find_place(False, 1) is None
    place = find_place(True, 1)
    assert place is not None
    assert place.address.startswith("node03:")
    assert (place.count, place.index) == (2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "JAX_COORDINATOR_ADDRESS is not set, and this is no TPU pod"),
        (("a:1", "2"), "JAX_PROCESS_ID is not set"),
        (("a:1", "2", "2"), "JAX_PROCESS_ID=2: must be from 0 to 1, as JAX_NUM_PROCESSES=2"),
        (("a:1", "two", "1"), "JAX_NUM_PROCESSES='two': must be a whole number"),
        (("a", "2", "1"), "JAX_COORDINATOR_ADDRESS='a': must read like HOST:PORT"),
    ],
)
def test_a_place_that_is_none_is_refused_by_its_name(environment, values, message):
    environment(*values)
    with pytest.raises(ValueError, match=message):
        find_place(not values, 1)


def test_processes_that_never_met_are_told_how_to(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 16)
    with pytest.raises(ValueError, match=r"16 processes share .* run main.py with --distributed"):
        wait_for_all("the beginning of training")


def test_alone_an_end_is_a_line_and_a_status(capsys):
    with pytest.raises(SystemExit) as ended:
        stop("why", 130)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "why\n"
    assert processes._member is None


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_others_hear_whether_the_same_command_goes_on(monkeypatch, goes_on):
    heard = []
    member = SimpleNamespace(ends=lambda within: False, fail=heard.append)
    monkeypatch.setattr(processes, "_member", member)
    monkeypatch.setattr(processes, "_failing", False)
    monkeypatch.setattr(processes, "_exit", lambda status: None)
    monkeypatch.setattr(processes.signal, "signal", lambda *_: None)
    stop("OSError: part-7", goes_on=goes_on)
    hint = "; the same command goes on from the last checkpoint"
    assert heard == ["OSError: part-7" + hint * goes_on]


PROGRAM = """
import json
import os
import sys

from adaperceiver_jax.train.settings import Settings
from adaperceiver_jax.train import processes

place, count, index = sys.argv[1:]
os.environ.update(
    JAX_COORDINATOR_ADDRESS=f"localhost:{place}", JAX_NUM_PROCESSES=count, JAX_PROCESS_ID=index
)
processes.join(Settings(), "a folder")
import jax
import numpy as np
from jax.experimental import multihost_utils

processes.wait_for_all("here")
seen = multihost_utils.process_allgather(np.int32([jax.process_index()])).ravel().tolist()
count = jax.process_count()
processes.leave()
print(json.dumps([count, seen]))
"""


def test_two_processes_join_work_together_and_leave(tmp_path):
    assert said_by_processes(PROGRAM, 2, tmp_path, timeout=120) == [[2, [0, 1]]] * 2
