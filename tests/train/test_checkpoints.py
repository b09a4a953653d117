"""Checkpoints of a random state: what is damaged is found out, named and passed over."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.sharding import placed
from adaperceiver_jax.train.step import TrainState
from tests.train.small import assert_same, rows, run

# Reads that were broken off by an error are cleaned up late.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_at(step: int, width: int = 8) -> TrainState:
    """Trained: 'a'; frozen: 'b'. Every step has other numbers."""

    def draw(n, *shape):
        return jax.random.normal(jax.random.fold_in(jax.random.key(step), n), shape)

    trained = {"a": {"kernel": draw(0, width, 512)}}
    return TrainState(
        step=jnp.int32(step),
        params={**trained, "b": {"bias": draw(1, 5)}},
        ema={"a": {"kernel": draw(2, width, 512)}},
        opt_state=({"a": {"kernel": draw(3, width, 512)}}, jnp.int32(step)),
    )


def with_memory(step: int) -> TrainState:
    return state_at(step).replace(memory={"baseline": jnp.float32(step / 3)})


def shapes_of(state: TrainState) -> TrainState:
    return placed(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def shapes(width: int = 8) -> TrainState:
    return shapes_of(state_at(0, width))


def open_in(folder, **settings) -> Checkpoints:
    return Checkpoints(folder, CheckpointSettings(**settings), metric="accuracy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with open_in(folder, keep_last=3) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_at(step), step, {"position": step}, {"accuracy": 0.5})
    return folder


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(folder, item):
    file = largest(folder / item)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder, item):
    file = largest(folder / item)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete_part(folder, item):
    largest(folder / item).unlink()


def delete_item(folder, item):
    shutil.rmtree(folder / item)


def delete_names(folder, item):
    for name in ("_METADATA", "metadata"):
        (folder / item / name).unlink(missing_ok=True)


def cut_names(folder, item):
    """Of an item whose shapes cannot be told."""
    for name in ("_METADATA", "metadata"):
        if (file := folder / item / name).exists():
            file.write_text(file.read_text()[:40])


DAMAGES = [
    (truncate, "params"),
    (flip, "ema"),
    (flip, "data"),
    (delete_part, "optimizer"),
    (delete_item, "params"),
    (delete_item, "data"),
    (delete_names, "ema"),
    (cut_names, "params"),
]


def restored_from(checkpoints) -> int:
    restored = checkpoints.restore(shapes())
    step = int(restored.state.step)
    assert_same(restored.state, state_at(step))
    assert restored.data == {"position": step}
    return step


@pytest.mark.parametrize(("damage", "item"), DAMAGES)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(workdir, caplog, damage, item):
    damage(workdir / "checkpoints" / "6", item)
    with open_in(workdir, keep_last=3) as checkpoints:
        with caplog.at_level(logging.WARNING):
            assert restored_from(checkpoints) == 4
        warnings = [r.getMessage() for r in caplog.records if "is damaged and passed over" in r.msg]
        assert len(warnings) == 1
        assert str(workdir / "checkpoints" / "6") in warnings[0]
        # Kept under another name, so that the run can save its step again.
        assert (workdir / "checkpoints" / "damaged-6").is_dir()
        assert checkpoints.steps() == [2, 4]
        checkpoints.save(state_at(6), 6, {"position": 6}, None)
        checkpoints.wait()
        assert restored_from(checkpoints) == 6


def test_two_damaged_ones_are_passed_over_and_a_reader_changes_nothing(workdir, caplog):
    for step in ("4", "6"):
        flip(workdir / "checkpoints" / step, "ema")
    with Checkpoints(workdir) as checkpoints:
        step, weights = checkpoints.restore_weights()
    assert step == 2
    assert_same(weights, state_at(2).ema_params())
    assert caplog.text.count("is damaged and passed over") == 2
    assert (workdir / "checkpoints" / "6").is_dir()
    with open_in(workdir) as checkpoints:
        assert restored_from(checkpoints) == 2


def test_where_all_are_damaged_it_stops_and_deletes_nothing(workdir):
    for step in ("2", "4", "6"):
        truncate(workdir / "checkpoints" / step, "params")
    before = sorted(workdir.rglob("*"))
    message = "none of the checkpoints 2, 4, 6 can be read; to start"
    with open_in(workdir) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(shapes())
    assert sorted(workdir.rglob("*")) == before


def test_one_of_another_model_is_an_error_and_not_damage(workdir):
    with open_in(workdir) as checkpoints:
        with pytest.raises(ValueError, match=r"a/kernel is \(8, 512\) there, \(9, 512\) here.*wo"):
            checkpoints.restore(shapes(width=9))
        assert checkpoints.steps() == [2, 4, 6]
        other = shapes()
        other.params["c"] = other.params["b"]
        with pytest.raises(ValueError, match=r"c/bias is missing there, \(5,\) here"):
            checkpoints.restore(other)
    assert not list((workdir / "checkpoints").glob("damaged*"))


def test_weights_load_without_the_optimizer_of_the_newest_or_of_a_step(workdir):
    for step in ("2", "4", "6"):
        shutil.rmtree(workdir / "checkpoints" / step / "optimizer")
    with Checkpoints(workdir) as checkpoints:
        step, weights = checkpoints.restore_weights()
        assert step == 6
        assert_same(weights, state_at(6).ema_params())
        assert_same(checkpoints.restore_weights("params", 4)[1], state_at(4).params)
        with pytest.raises(ValueError, match="has no checkpoint of step 3, but 2, 4, 6"):
            checkpoints.restore_weights("params", 3)


def test_the_last_and_the_best_are_kept(tmp_path):
    with open_in(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.9, 0.3, None, 0.5, None], start=1):
            metrics = None if accuracy is None else {"accuracy": accuracy}
            checkpoints.save(state_at(step), step, {}, metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
    with open_in(tmp_path, keep_last=2, keep_best=1) as checkpoints:  # the best is known again
        checkpoints.save(state_at(7), 7, {}, {"accuracy": 0.8})
    assert Checkpoints(tmp_path).steps() == [2, 6, 7]


def test_a_step_that_is_evaluated_after_it_was_saved_may_be_the_best(tmp_path):
    with open_in(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.save(state_at(1), 1, {}, None)
    with open_in(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.add_metrics(1, {"accuracy": 0.9})
        for step in (2, 3):
            checkpoints.save(state_at(step), step, {}, {"accuracy": 0.1 * step})
    assert Checkpoints(tmp_path).steps() == [1, 3]


def test_what_is_saved_is_what_was_there_when_it_was_first_asked(tmp_path):
    """The state's memory is handed to the next step while it is still being written."""
    with open_in(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes()) is None
        state = state_at(3)
        checkpoints.save(state, 3, {"position": 3}, None)
        reuse = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
        jax.block_until_ready(reuse(state))
        checkpoints.wait()
        checkpoints.save(state_at(4), 3, {"position": 4}, None)
        checkpoints.wait()
        assert restored_from(checkpoints) == 3


def test_memory_is_an_item_that_is_checked_as_the_others_where_there_is_any(
    saved, tmp_path, caplog
):
    with open_in(tmp_path, keep_last=3) as checkpoints:
        for step in (2, 4):
            checkpoints.save(with_memory(step), step, {}, None)
        checkpoints.wait()
        wanted = shapes_of(with_memory(0))
        assert_same(checkpoints.restore(wanted).state, with_memory(4))
        flip(tmp_path / "checkpoints" / "4", "memory")
        assert_same(checkpoints.restore(wanted).state, with_memory(2))
        assert "is damaged and passed over" in caplog.text
    assert not (saved / "checkpoints" / "2" / "memory").exists()


@pytest.mark.slow
def test_a_policy_run_that_was_stopped_ends_as_one_never_stopped(tmp_path):
    """Its memory, the running mean of rewards, goes on to the bit."""
    changes = {"checkpoint.keep_last": 4, "policy.baseline_decay": 0.5, "policy.looks_at": "peek"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(whole, "policy_in1k", changes).finished
    table = rows(whole)
    assert len({row["baseline"] for row in table}) == 4
    assert table[-1]["baseline"] != table[-1]["reward"]
    shutil.copytree(whole, again)
    shutil.rmtree(again / "model")
    for step in ("6", "8"):
        shutil.rmtree(again / "checkpoints" / step)
    assert run(again, "policy_in1k", changes).finished
    for item in ("params", "ema", "optimizer", "memory"):
        ours, theirs = (Checkpoints(w).restore_weights(item, 8)[1] for w in (again, whole))
        assert_same(ours, theirs)
    assert np.isfinite(float(ours["baseline"]))
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
