"""Processes that load, and how they end: by themselves, leaving nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ROOT = Path(__file__).resolve().parents[2]
COMMON = """
import contextlib, itertools, os, signal, sys, threading, time
import numpy as np
from adaperceiver_jax.data.loading import LoaderEndedError, Loading
from adaperceiver_jax.data.pipeline import TrainOrder, train_batches


class Large:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return {"image": np.full((64, 64, 3), int(index) % 251, np.uint8)}


def workers():
    found = []
    for pid in os.popen(f"ps -o pid= --ppid {os.getpid()}").read().split():
        with contextlib.suppress(OSError):
            found += [pid] if "spawn_main" in open(f"/proc/{pid}/cmdline").read() else []
    return found


def ask(act):
    while not workers():
        time.sleep(0.01)
    act()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    batches = train_batches(TrainOrder(Large(), 0), 32, 0, 1000, Loading(workers=2, prefetch=2))
"""
RUNNING = """
    first = [next(batches) for _ in range(3)]
    print(*workers(), flush=True)
"""


def start(tmp_path, then, before=RUNNING):
    """Starts a program that has batches loaded, and goes on so."""
    program = tmp_path / "program.py"
    program.write_text(COMMON + before + textwrap.indent(textwrap.dedent(then), "    "))
    return subprocess.Popen(
        [sys.executable, program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C goes to all of a session
    )


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def comes_true(condition):
    until = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def gone(pids):
    """Whether the processes end in time."""
    return comes_true(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids.split()))


def test_loaders_have_a_core_each_and_end_without_a_word(tmp_path):
    then = """
        print([sorted(os.sched_getaffinity(int(pid))) for pid in workers()])
        rest = [next(batches) for _ in range(40)]
        batches.close()
    """
    out, err = (process := start(tmp_path, then)).communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    pids, cores = out.splitlines()
    own = sorted(os.sched_getaffinity(0))
    assert sorted(eval(cores)) == sorted([own[i % len(own)]] for i in range(2))
    assert gone(pids)


@pytest.mark.slow
def test_ctrl_c_reaches_the_program_alone_and_a_loader_that_was_killed_is_said(tmp_path):
    then = """
        try:
            os.killpg(os.getpgrp(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            print("more", len([next(batches) for _ in range(3)]))
        for pid in workers():
            os.kill(int(pid), signal.SIGKILL)
        try:
            list(batches)
        except LoaderEndedError as error:
            print("said", error)
    """
    out, _ = (process := start(tmp_path, then)).communicate(timeout=120)
    assert process.returncode == 0  # Python frees the loaders' memory, and says so
    pids, more, said = out.splitlines()
    assert more == "more 3"
    assert "said a process that loads images was ended from outside. If memory ran out" in said
    assert gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGINT, "batches.close()"), (signal.SIGTERM, "pass")],  # Python's end closes them
)
def test_loaders_that_are_starting_are_left_alone_by_what_asks_a_run_to_stop(tmp_path, number, end):
    then = f"""
        asked, number = [], {int(number)}
        signal.signal(number, lambda number, frame: asked.append(number))
        act = lambda: os.killpg(os.getpgrp(), number)
        threading.Thread(target=ask, args=(act,), daemon=True).start()
        count = sum(1 for _ in itertools.islice(batches, 20))
        {end}
        print(asked, count, flush=True)
    """
    out, err = (process := start(tmp_path, then, before="")).communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out == f"[{int(number)}] 20\n"


@pytest.mark.slow
def test_loaders_of_a_program_that_was_killed_end_too(tmp_path):
    before = shared_memory()
    process = start(tmp_path, "time.sleep(60)")
    pids = process.stdout.readline()
    assert len(pids.split()) == 2
    process.kill()
    process.communicate(timeout=60)
    assert gone(pids)
    left = shared_memory() - before
    assert comes_true(lambda: not left & shared_memory())


@pytest.mark.slow
def test_loaders_that_are_starting_end_with_a_program_that_is_killed(tmp_path):
    then = """
        act = lambda: (time.sleep(0.2), os.kill(os.getpid(), 9))
        threading.Thread(target=ask, args=(act,), daemon=True).start()
        next(batches)
        time.sleep(60)
    """
    process = start(tmp_path, then, before="")
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (-signal.SIGKILL, "")
    left = ["ps", "-o", "pid=", "-s", str(process.pid)]
    assert gone(subprocess.run(left, capture_output=True, text=True).stdout)
