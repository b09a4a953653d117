"""Runs of main.py that are killed, or asked to stop, and started again: as if nothing had been.

Every comparison is bit for bit: parameters, their mean, optimizer, metrics.csv, the model's folder.
The programs are compiled as users' are, and kept apart from those of other tests, as a killed run
may leave one half written.
"""

import os
import signal
import time

import pytest

from adaperceiver_jax.train.checkpoints import Checkpoints
from tests.train.several import finish_all, start_all
from tests.train.small import SMALL, assert_same, saved_steps

CHANGES = {
    **SMALL,
    "length": "24 steps",
    "evaluation.every": "8 steps",
    "checkpoint.every": "4 steps",
    "optimizer.precondition_frequency": 5,
    "optimizer.start_preconditioning_step": 5,
}
"""Refreshes of SOAP at 5, 10, 15 and 20; an epoch is 5 steps."""
CONFIG = "configs/scratch.py:runlocal," + ",".join(f"{k}={v}" for k, v in CHANGES.items())


@pytest.fixture(scope="module", autouse=True)
def _compiled_as_users_are(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        flags = os.environ["XLA_FLAGS"].replace("--xla_cpu_use_fusion_emitters=false", "")
        patch.setenv("XLA_FLAGS", flags)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        yield


def start(workdir, moment=None, step=0):
    """main.py on one device; 'moment' and 'step' as tests/train/killed.py takes them."""
    (process,) = start_all(1, CONFIG, workdir, {0: (moment, step)} if moment else None)
    return process


def finish(process) -> tuple[int, str, str]:
    return finish_all([process])[0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("reference")
    code, out, err = finish(start(workdir))
    assert code == 0, err
    assert "step 24/24" in out
    return workdir


def final(workdir):
    """The last checkpoint's items, read as they were saved."""
    with Checkpoints(workdir) as checkpoints:
        items = ("params", "ema", "optimizer")
        return {item: checkpoints.restore_weights(item, 24)[1] for item in items}


def assert_same_run(ours, theirs):
    assert_same(final(ours), final(theirs))
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json", "config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_never_stopped(reference, tmp_path):
    for moment, step, saved in (
        ("logged", 2, []),  # before the first checkpoint
        ("saving", 8, None),  # one is being written, right after an evaluation
        ("saved", 12, None),
        ("logged", 18, None),  # rows are ahead of the last checkpoint
    ):
        code, out, err = finish(start(tmp_path, moment, step))
        assert code == -signal.SIGKILL, (moment, step, out, err)
        if saved is not None:
            assert saved_steps(tmp_path) == saved
        if moment == "saved":
            assert saved_steps(tmp_path)[-1] == step
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("18,")
    assert saved_steps(tmp_path)[-1] in (12, 16)  # 16 may have been under way

    process = start(tmp_path)  # as soon as the folder of a checkpoint is seen from outside
    while not list((tmp_path / "checkpoints").glob("20*")):
        assert process.poll() is None, finish(process)
        time.sleep(0.001)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL

    code, _, _ = finish(start(tmp_path, "handing-on"))
    assert code == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert "going on from step 24 of 24" in out
    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_says_so_and_goes_on_from_there(reference, tmp_path):
    code, out, err = finish(start(tmp_path, "asked", 10))
    assert code == 0, err
    assert "asked to stop: saved at step 11; the same command goes on from there" in out
    assert saved_steps(tmp_path)[-1] == 11
    assert not (tmp_path / "model").exists()
    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert "going on from step 11 of 24" in out
    assert "step 12/24" in out
    assert "step 10/24" not in out
    assert_same_run(tmp_path, reference)


@pytest.mark.slow
def test_a_run_asked_to_stop_as_it_evaluates_owes_that_evaluation(reference, tmp_path):
    """Of a step between and of the last one, whose evaluation comes before the model's folder."""
    for step, last in ((8, 8), (24, 24)):
        code, out, err = finish(start(tmp_path, "evaluating", step))
        assert code == 0, err
        assert f"asked to stop: saved at step {last};" in out
        assert saved_steps(tmp_path)[-1] == last
        assert not (tmp_path / "model").exists()
    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert_same_run(tmp_path, reference)
    metrics = "checkpoints/24/metrics/metrics"  # by which the best are kept
    assert (tmp_path / metrics).read_bytes() == (reference / metrics).read_bytes() != b"{}"
