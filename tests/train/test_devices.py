"""The same run on 1 and 8 devices, split over both axes: the same up to rounding.

Losses agree to 1e-4: sums are taken in another order, and Adam's square roots carry such
differences on. The order of samples, what is saved and what is restored agree bit for bit.
"""

import jax
import numpy as np
import pytest

from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.tasks.make import make_task
from adaperceiver_jax.train import loop
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import make_programs
from tests.train.small import PLAIN, assert_same, rows, run, run_config

MESHES = {"1": (1, 1), "4x2": (8, 2)}
"""Devices, and of them along fsdp."""
LENGTH = {
    **PLAIN,
    "length": "6 steps",
    "log_every": 1,
    "model.embed_dim": 16,
    "model.widths": (8, 16),
}
BATCH = {
    "image": np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), np.uint8),
    "label": np.arange(8, dtype=np.int32),
}


def programs_on(devices, on: str, optimizer: str = "nadamw"):
    """The programs of the run, as `train` makes them but for the learning rate."""
    count, fsdp = MESHES[on]
    devices(count)
    config = run_config("scratch", {**LENGTH, "mesh.fsdp": fsdp})
    keys = dict(precondition_frequency=1, start_preconditioning_step=1, max_preconditioner_dim=512)
    mesh = make_mesh(config.mesh)
    chosen = make_optimizer(optimizer, lambda count: 1e-3, weight_decay=0.003, mesh=mesh, **keys)
    task = make_task(config)
    return make_programs(task, chosen, mesh, seed=0, clip=3.0, ema=0.99)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder and batches, trained and evaluated on, of the runs on two meshes."""
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("1", "4x2"):
            count, fsdp = MESHES[name]
            patch.setattr(jax, "device_count", lambda *_, count=count: count)
            seen = []
            original = loop.to_devices

            def spy(batches, sharding, seen=seen, original=original):
                def watched():
                    for batch in batches:
                        seen.append(batch)
                        yield batch

                return original(watched(), sharding)

            with patch.context() as inner:
                inner.setattr(loop, "to_devices", spy)
                folder = tmp_path_factory.mktemp(f"on_{name}")
                run(folder, "scratch", {**LENGTH, "mesh.fsdp": fsdp})
            done[name] = folder, seen
    return done


@pytest.mark.slow
def test_losses_and_samples_are_those_of_one_device(runs):
    (want_folder, want_batches), (folder, batches) = runs["1"], runs["4x2"]
    assert len(batches) == len(want_batches) > 6
    for ours, want in zip(batches, want_batches, strict=True):
        for name in want:
            np.testing.assert_array_equal(ours[name], want[name])
    ours, want = rows(folder), rows(want_folder)
    assert [row["step"] for row in ours] == [1, 2, 3, 4, 5, 6]
    assert want[0]["loss"] != want[1]["loss"]
    for a, b in zip(ours, want, strict=True):
        assert set(a) == set(b)
        for name in (n for n in a if "accuracy" not in n and "norm" not in n):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=f"{name} {b['step']}")


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_restores_on_one_bit_for_bit(runs, devices):
    folder = runs["4x2"][0]
    states = []
    for name in ("4x2", "1"):
        shapes = programs_on(devices, name).state
        checkpoints = Checkpoints(folder)
        states.append(checkpoints.restore(shapes).state)
        checkpoints.close()
        for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(states[-1]), strict=True):
            assert leaf.sharding == shape.sharding
    assert int(states[0].step) == 6
    assert_same(*states)


def restored(folder, state, step, shapes):
    """The state after it was saved and restored onto other shardings: the same but for the rows of
    zeros of SOAP's stacks, of which there are as many as the devices ask for."""
    with Checkpoints(folder, CheckpointSettings()) as checkpoints:
        checkpoints.save(state, step, {}, None)
        checkpoints.wait()
        found = checkpoints.restore(shapes).state
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True
    ):
        a, b = np.atleast_1d(a), np.atleast_1d(b)
        rows = min(len(a), len(b))
        np.testing.assert_array_equal(a[:rows], b[:rows], err_msg=str(path))
        assert a.shape[1:] == b.shape[1:]
        assert not a[rows:].any()
        assert not b[rows:].any()
    return found


@pytest.mark.slow
def test_soaps_state_is_really_split_and_goes_on_on_fewer_and_on_more_devices(tmp_path, devices):
    """A device holds half of all that can be halved, and of SOAP's stacks its eighth, after a step
    too; a run goes on as it would have."""
    programs, alone = (programs_on(devices, mesh, "soap") for mesh in ("4x2", "1"))
    state = programs.init(jax.random.key(0))
    state, _ = programs.update(state, {}, BATCH, 1)
    total = held = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert len(leaf.sharding.device_set) == 8, name
        (shard,) = {shard.data.shape for shard in leaf.addressable_shards}
        stacked = "blocks" in name
        halves = [n for n in leaf.shape[stacked:] if n % 2 == 0 and n]
        parts = 8 if "_of_" in name else 2 if halves else 1
        assert np.prod(shard, dtype=int) * parts == leaf.size, name
        total, held = total + leaf.nbytes, held + leaf.addressable_shards[0].data.nbytes
    assert held < 0.2 * total

    fewer = restored(tmp_path / "fewer", state, 1, alone.state)
    more = restored(tmp_path / "more", fewer, 1, programs.state)
    _, want = alone.update(fewer, {}, BATCH, 2)
    _, found = programs.update(more, {}, BATCH, 2)
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-4)

    # What is not finite has no eigenvectors: the metrics say so, the hosts do not fail on it.
    broken = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    _, metrics = programs.update(broken, {}, BATCH, 2)
    assert np.isnan(metrics["loss"])
