"""Processes that load, and how they end: by themselves, leaving nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import contextlib, itertools, os, signal, sys, threading, time
import numpy as np
from adaperceiver_jax.data.loading import LoaderEndedError, Loading
from adaperceiver_jax.data.pipeline import TrainOrder, train_batches

class Large:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return {"image": np.full((64, 64, 3), int(index) % 251, np.uint8)}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loading = Loading(workers=2, prefetch=2)
    batches = train_batches(TrainOrder(Large(), 0), 32, 0, 1000, loading)
    first = [next(batches) for _ in range(3)]
    children = os.popen(f"ps -o pid= --ppid {os.getpid()}").read().split()
    cores = [sorted(os.sched_getaffinity(int(pid))) for pid in children if is_worker(pid)]
    print("cores", cores, flush=True)
    print("pids", *children, flush=True)
    END
""".replace(
    "if __name__",
    """def is_worker(pid):
    return "spawn_main" in open(f"/proc/{pid}/cmdline").read()


if __name__""",
)


def start(tmp_path, end, text=PROGRAM):
    program = tmp_path / "program.py"
    program.write_text(text.replace("END", end))
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C goes to all of a session
    )


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def gone(pids, seconds=20.0):
    """Whether the processes end in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def pids_of(out):
    return next(line for line in out.splitlines() if line.startswith("pids")).split()[1:]


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
@pytest.mark.parametrize("end", ["batches.close()", "list(batches); batches.close()"])
def test_loaders_end_without_a_word_and_leave_no_memory(tmp_path, end):
    end = end.replace("list(batches)", "[next(batches) for _ in range(40)]")
    out, err = (process := start(tmp_path, end)).communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    cores = eval(next(line for line in out.splitlines() if line.startswith("cores"))[6:])
    own = sorted(os.sched_getaffinity(0))
    assert sorted(cores) == sorted([own[i % len(own)]] for i in range(2))
    assert gone(pids_of(out))


@linux
def test_ctrl_c_reaches_the_program_and_not_its_loaders(tmp_path):
    end = """
    try:
        os.killpg(os.getpgrp(), signal.SIGINT)
        time.sleep(30)
    except KeyboardInterrupt:
        more = [next(batches) for _ in range(3)]
        batches.close()
        print("closed", len(more))
""".strip()
    process = start(tmp_path, end)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "closed 3" in out
    assert gone(pids_of(out))


ASKED = """
def is_worker(pid):
    return "spawn_main" in open(f"/proc/{pid}/cmdline").read()

def ask():
    children = []
    while not children:
        time.sleep(0.01)
        for pid in os.popen(f"ps -o pid= --ppid {os.getpid()}").read().split():
            with contextlib.suppress(OSError):
                children += [pid] if is_worker(pid) else []
    ASK

if __name__ == "__main__":
    asked = []
    signal.signal(NUMBER, lambda number, frame: asked.append(number))
    threading.Thread(target=ask, daemon=True).start()
    batches = train_batches(TrainOrder(Large(), 0), 32, 0, 1000, Loading(workers=2))
    count = sum(1 for _ in itertools.islice(batches, 20))
    END
    print(asked, count, flush=True)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("end", ["batches.close()", "pass"])  # not closed: Python's end does it
def test_loaders_that_are_starting_are_left_alone_by_what_asks_a_run_to_stop(tmp_path, number, end):
    before = PROGRAM.partition("def is_worker")[0]
    program = before + ASKED.replace("ASK", "os.killpg(os.getpgrp(), NUMBER)")
    program = program.replace("NUMBER", str(int(number)))
    out, err = (process := start(tmp_path, end, program)).communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out == f"[{int(number)}] 20\n"


@linux
def test_a_loader_that_was_killed_is_said(tmp_path):
    end = """
    for pid in children:
        if is_worker(pid):
            os.kill(int(pid), signal.SIGKILL)
    try:
        list(batches)
    except LoaderEndedError as error:
        print("said", error)
""".strip()
    out, _ = (process := start(tmp_path, end)).communicate(timeout=120)
    assert process.returncode == 0  # Python frees its memory, and says so
    assert "said a process that loads images was ended from outside. If memory ran out" in out


@linux
def test_loaders_of_a_program_that_was_killed_end_too(tmp_path):
    before = shared_memory()
    process = start(tmp_path, "time.sleep(60)")
    lines = [process.stdout.readline() for _ in range(2)]
    pids = pids_of("".join(lines))
    assert len(pids) >= 2
    process.kill()
    process.communicate(timeout=60)
    assert gone(pids)
    left, until = shared_memory() - before, time.monotonic() + 20
    while left & shared_memory() and time.monotonic() < until:
        time.sleep(0.1)
    assert not left & shared_memory()


@linux
def test_loaders_that_are_starting_end_with_a_program_that_is_killed(tmp_path):
    before = PROGRAM.partition("def is_worker")[0]
    program = before + ASKED.replace("ASK", "time.sleep(0.2); os.kill(os.getpid(), 9)")
    process = start(tmp_path, "pass", program.replace("NUMBER", str(int(signal.SIGINT))))
    session = process.pid
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (-signal.SIGKILL, "")
    left = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True)
    assert gone(left.stdout.split())
