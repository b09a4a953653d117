"""Runs of several real processes: they train what one trains, and none is left waiting.

Losses are held to those of one process: to rtol 1e-5, rounding in float32, without SOAP; with it,
to one process with as many devices, since eigenvectors of factors that are nearly singular turn far
by rounding.
"""

import signal
import time

import pytest

from tests.train.several import finish_all, send_all, start_all
from tests.train.small import PLAIN, SMALL, rows, saved_steps

NIGHTLY = pytest.mark.nightly(group="processes")
MOST = 20.0
"""Seconds after the first process's end in which all others must have ended, imports and all."""


def config(changes: dict) -> str:
    both = {**SMALL, **changes}
    return "configs/scratch.py:runlocal," + ",".join(f"{k}={v}" for k, v in both.items())


QUICK = config(PLAIN)
LONG = config(
    {
        **PLAIN,
        "length": "100000 steps",
        "log_every": 10,
        "evaluation.every": "100000 steps",
        "checkpoint.every": "2000 steps",
    }
)
"""Only a signal ends it."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The rows of a run of one process that was never stopped."""
    workdir = tmp_path_factory.mktemp("alone")
    ((code, _, err),) = finish_all(start_all(1, QUICK, workdir))
    assert code == 0, err
    return rows(workdir)


def assert_same_losses(ours, theirs, rtol=1e-5):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, rel=rtol), our["step"]


def until(started, condition) -> None:
    """Waits for it while all processes are there."""
    while not condition():
        assert all(process.poll() is None for process in started), finish_all(started)
        time.sleep(0.02)


def check_quiet(ended) -> None:
    """All went well, and only the first said so."""
    for index, (code, out, err) in enumerate(ended):
        assert (code, err) == (0, ""), (index, err)
        assert bool(out) == (index == 0), (index, out)


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_only_the_first_speaks(alone, tmp_path):
    check_quiet(finish_all(start_all(2, QUICK, tmp_path)))
    assert_same_losses(rows(tmp_path), alone)
    assert (tmp_path / "model" / "model.safetensors").exists()


@NIGHTLY
def test_where_a_processs_devices_are_no_neighbours_it_is_the_same_run(alone, tmp_path):
    """On a pod a mesh follows the chips' torus, and a batch's places on a host lie apart."""
    woven = dict.fromkeys(range(2), ("woven", 0))
    check_quiet(finish_all(start_all(2, QUICK, tmp_path, woven, devices=2)))
    assert_same_losses(rows(tmp_path), alone)


@NIGHTLY
def test_a_checkpoint_goes_on_with_any_number_of_processes(alone, tmp_path):
    """1 -> 4 -> 1 -> 2 -> 1; the first process is killed when its checkpoint is whole."""
    every = config({**PLAIN, "checkpoint.every": "1 steps"})
    before = 0
    for count, last in ((1, 2), (4, 4), (1, 5), (2, 6), (1, 8)):
        moments = {0: ("saved", last)} if last < 8 else None
        ended = finish_all(start_all(count, every, tmp_path, moments), MOST)
        assert ended[0][0] == (0 if last == 8 else -signal.SIGKILL), ended
        assert (f"going on from step {before} of 8" in ended[0][1]) == (before > 0)
        before = last
        assert saved_steps(tmp_path)[-1] == last
    assert_same_losses(rows(tmp_path), alone)


@NIGHTLY
def test_what_one_process_alone_cannot_read_of_a_checkpoint_is_damaged_for_all(tmp_path):
    split = config({**PLAIN, "mesh.fsdp": 2})
    check_quiet(finish_all(start_all(2, split, tmp_path)))
    before = rows(tmp_path)
    # All of its files: which of them is still read depends on how many commits it wrote.
    for written in (tmp_path / "checkpoints/8/params/ocdbt.process_1/d").iterdir():
        written.write_bytes(written.read_bytes()[:60])
    ended = finish_all(start_all(2, split, tmp_path))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert "checkpoints/8 is damaged and passed over" in ended[0][2]
    assert "going on from step 6 of 8" in ended[0][1]
    assert rows(tmp_path) == before


@NIGHTLY
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_its_name(alone, tmp_path, index):
    ended = finish_all(start_all(2, QUICK, tmp_path, {index: ("logged", 6)}), MOST)
    assert ended[index][0] == -signal.SIGKILL
    code, _, err = ended[1 - index]
    assert code != 0
    # With the first process JAX's service is gone, too, and its abort may come first.
    if index or "the leader task was preempted/died" not in err:
        assert f"process {index} (" in err
        assert ") is gone: it was killed, or its host is down" in err
        assert "the same command goes on from the last checkpoint" in err
    ended = finish_all(start_all(2, QUICK, tmp_path))
    check_quiet(ended)
    assert "going on from step" in ended[0][1]
    assert_same_losses(rows(tmp_path), alone)


@NIGHTLY
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_stands_still_is_named_to_all(tmp_path, index):
    config = f"{LONG},processes.lost_after=6"
    started = start_all(2, config, tmp_path)
    until(started, (tmp_path / "metrics.csv").exists)
    started[index].send_signal(signal.SIGSTOP)
    started[1 - index].wait(MOST)
    started[index].send_signal(signal.SIGCONT)
    ended = finish_all(started, MOST)
    assert [code for code, _, _ in ended] == [1, 1]
    said = ") is silent for 6 s: it stands still, or its host is down"
    assert f"): process {index} (" in ended[1 - index][2]
    assert said in ended[1 - index][2]
    if index:  # the first, whom all others have left when it goes on, may say that
        assert said in ended[index][2]


@NIGHTLY
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_fails_ends_the_others_with_its_error(tmp_path, index):
    ended = finish_all(start_all(2, QUICK, tmp_path, {index: ("failing", 4)}), MOST)
    assert [code for code, _, _ in ended] == [1, 1]
    failed, other = ended[index][2], ended[1 - index][2]
    assert failed.startswith(f"process {index} (")
    assert failed.endswith("): OSError: part-7: cannot be read\n")
    assert other.startswith(f"process {1 - index} (")
    assert f"): process {index} (" in other
    assert other.endswith(
        ") failed: OSError: part-7: cannot be read; the same command goes on from the last "
        "checkpoint\n"
    )
    assert failed.count("\n") == other.count("\n") == 1


@NIGHTLY
def test_a_process_that_cannot_write_its_part_of_a_checkpoint_ends_all(tmp_path):
    """Nor anything else: what it says into a file is lost, too, but the others hear it."""
    split = config({**PLAIN, "mesh.fsdp": 2})
    ended = finish_all(start_all(2, split, tmp_path, {1: ("full", 4)}), MOST)
    assert [code for code, _, _ in ended] == [1, 1], ended
    said = f"NotWrittenError: {tmp_path}/checkpoints: a checkpoint was not written: "
    assert "): process 1 (" in ended[0][2]
    assert f") failed: {said}" in ended[0][2]
    ended = finish_all(start_all(2, split, tmp_path))
    check_quiet(ended)
    assert "going on from step" in ended[0][1]


@NIGHTLY
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_all_or_one_are_asked_to_stop_all_save_and_go_on(tmp_path, number):
    started = start_all(2, LONG, tmp_path)
    until(started, (tmp_path / "metrics.csv").exists)
    send_all(started, number)
    ended = finish_all(started, MOST)
    check_quiet(ended)
    last = saved_steps(tmp_path)[-1]
    said = f"asked to stop: saved at step {last}; the same command goes on from there"
    assert said in ended[0][1]
    assert not (tmp_path / "model").exists()

    moment = "asked" if number == signal.SIGTERM else "interrupted"
    begin = 10 * (last // 10) + 20
    ended = finish_all(start_all(2, LONG, tmp_path, {1: (moment, begin)}), MOST)
    check_quiet(ended)
    assert f"going on from step {last} of" in ended[0][1]
    last = saved_steps(tmp_path)[-1]
    assert last > begin
    assert f"asked to stop: saved at step {last};" in ended[0][1]


@NIGHTLY
def test_two_ctrl_c_end_all_at_once(tmp_path):
    started = start_all(2, LONG, tmp_path)
    until(started, (tmp_path / "metrics.csv").exists)
    for _ in range(2):
        started[1].send_signal(signal.SIGINT)
        time.sleep(0.2)
    ended = finish_all(started, MOST)
    assert [code for code, _, _ in ended] == [1, 130]
    said = "stopped; the same command goes on from the last checkpoint\n"
    assert ended[1][2].endswith(f"): {said}")
    assert ended[0][2].endswith(f") failed: {said}")


@NIGHTLY
def test_a_process_that_would_do_something_else_is_named_before_anything_is_begun(tmp_path):
    workdir = tmp_path / "run"
    flags = {1: ["--config.optimizer.lr=3"]}
    for index, (code, out, err) in enumerate(
        finish_all(start_all(2, QUICK, workdir, flags=flags), MOST)
    ):
        assert (code, out) == (1, ""), index
        assert err.startswith("MeetingError: process 1 (")
        assert ") has config.optimizer.lr=3.0, process 0 (" in err
        assert err.count("\n") == 1
    assert not workdir.exists()


@NIGHTLY
def test_soap_on_two_processes_is_soap_on_two_devices_and_compiled_once(tmp_path):
    soap = config({})
    two = tmp_path / "two"
    check_quiet(finish_all(start_all(2, soap, two)))
    one = tmp_path / "one"
    check_quiet(finish_all(start_all(1, soap, one, devices=2)))
    assert_same_losses(rows(two), rows(one), 1e-4)
    again = tmp_path / "again"
    ended = finish_all(start_all(2, soap, again))
    check_quiet(ended)
    assert "compiled 0 programs and read" in ended[0][1]
    assert rows(again) == rows(two)


@NIGHTLY
def test_soap_overlapped_and_in_parts_goes_on_however_it_ended(tmp_path):
    """Asked to stop in an evaluation, and killed as a checkpoint is written."""
    changes = {
        "optimizer.overlap": True,
        "optimizer.start_preconditioning_step": 2,
        "optimizer.precondition_frequency": 2,
        "accumulate": 2,
        "mesh.fsdp": 2,
        "checkpoint.every": "1 steps",
    }
    one, two = tmp_path / "one", tmp_path / "two"
    check_quiet(finish_all(start_all(1, config(changes), one, devices=2)))
    check_quiet(finish_all(start_all(2, config(changes), two, {1: ("evaluating", 4)})))
    assert saved_steps(two)[-1] in (4, 5)
    ended = finish_all(start_all(2, config(changes), two, {1: ("saving", 7)}), MOST)
    assert ended[1][0] == -signal.SIGKILL
    ended = finish_all(start_all(2, config(changes), two))
    check_quiet(ended)
    assert "going on from step 6 of 8" in ended[0][1]
    assert_same_losses(rows(two), rows(one), 1e-4)
