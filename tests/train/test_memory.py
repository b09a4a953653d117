"""What a task remembers of earlier steps: saved, checked, restored to the bit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.settings import CheckpointSettings
from tests.train.small import assert_same, rows, run
from tests.train.test_checkpoints import flip, state_at

CHANGES = {"checkpoint.keep_last": 4, "policy.baseline_decay": 0.5, "policy.looks_at": "peek"}


def with_memory(step):
    return state_at(step).replace(memory={"baseline": jnp.float32(step / 3)})


def like(state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep_last=3))
    for step in (2, 4):
        checkpoints.save(with_memory(step), step, {}, None)
    checkpoints.close()
    return tmp_path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_memory_is_an_item_that_is_checked_as_the_others(saved, caplog):
    checkpoints = Checkpoints(saved, CheckpointSettings(keep_last=3))
    assert_same(checkpoints.restore(like(with_memory(0))).state, with_memory(4))
    flip(saved / "checkpoints" / "4", "memory")
    assert_same(checkpoints.restore(like(with_memory(0))).state, with_memory(2))
    assert "is damaged and passed over" in caplog.text
    checkpoints.close()


def test_a_checkpoint_without_memory_has_no_such_item(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    checkpoints.save(state_at(2), 2, {}, None)
    checkpoints.wait()
    assert not (tmp_path / "checkpoints" / "2" / "memory").exists()
    assert checkpoints.restore(like(state_at(0))).state.memory == {}
    checkpoints.close()


@pytest.mark.slow
def test_a_policy_run_that_was_stopped_ends_as_one_never_stopped(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(whole, "policy_in1k", CHANGES).finished
    table = rows(whole)
    assert len({row["baseline"] for row in table}) == 4
    assert table[-1]["baseline"] != table[-1]["reward"]
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    for step in ("6", "8"):
        shutil.rmtree(again / "checkpoints" / step)
    assert run(again, "policy_in1k", CHANGES).finished
    for item in ("params", "ema", "optimizer", "memory"):
        ours, theirs = (Checkpoints(w).restore_weights(None, item, 8)[1] for w in (again, whole))
        assert_same(ours, theirs)
    assert np.isfinite(float(ours["baseline"]))
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
