"""When SOAP's eigenvectors are begun, waited for and used."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.train.step import Refresher
from tests.train.small import assert_same, rows, run

OVERLAP = {
    "optimizer.name": "soap",
    "optimizer.start_preconditioning_step": 2,
    "optimizer.precondition_frequency": 2,
    "optimizer.overlap": True,
}


class Recorded:
    """A refresh that says when it was begun and asked for."""

    def __init__(self, number, log):
        self.number, self.log = number, log
        log.append(f"begin {number}")

    def result(self):
        self.log.append(f"wait {self.number}")
        return self.number


def recorded(overlap):
    log = []
    soap = make_optimizer("soap", 1e-3, start_preconditioning_step=4, precondition_frequency=2)
    optimizer = dataclasses.replace(
        soap,
        refresh=lambda state, params: Recorded(state, log),
        install=lambda state, found: found,
        installed=lambda state: state,
    )
    return Refresher(optimizer, "shapes", overlap), log


def steps(refresh, numbers):
    """What due steps go on with; a step's state is its number, as are its eigenvectors."""
    return [refresh(number, number) for number in numbers]


def test_exactly_every_due_step_waits_for_its_own():
    refresh, log = recorded(overlap=False)
    assert steps(refresh, (4, 6)) == [4, 6]
    assert log == ["begin 4", "wait 4", "begin 6", "wait 6"]
    assert refresh.to_save(7) == {}


def test_overlapped_a_due_step_uses_those_of_the_one_before():
    refresh, log = recorded(overlap=True)
    assert steps(refresh, (4, 6, 8, 10)) == [4, 6, 6, 8]  # 6: what is installed; the first waits
    assert log == ["begin 4", "wait 4", "begin 6", "wait 6", "begin 8", "wait 8", "begin 10"]


@pytest.mark.parametrize(("saved", "upcoming", "waited"), [(7, 6, "wait 6"), (6, {}, "begin 6")])
def test_a_run_that_goes_on_uses_what_was_upcoming_when_it_was_saved(saved, upcoming, waited):
    """Saved at a due step nobody waits: what it began is begun again."""
    whole, log = recorded(overlap=True)
    assert whole.to_save(3) == {}
    steps(whole, (4,))
    assert whole.to_save(5) == {}  # those in use are all there are
    steps(whole, (6,))
    assert whole.to_save(saved) == whole.to_save(saved) == upcoming
    assert log[-1] == waited
    again, log = recorded(overlap=True)
    again.resume(saved, saved, upcoming)
    assert steps(again, (8,)) == steps(whole, (8,)) == [6]
    assert log == (["begin 8"] if upcoming else ["begin 6", "wait 6", "begin 8"])


def test_the_eigenvectors_of_an_overlapped_step_are_the_exact_ones_of_the_step_before():
    optimizer = make_optimizer(
        "soap", 1e-3, b2=0.5, start_preconditioning_step=1, precondition_frequency=1
    )
    params, found = {"w": jnp.eye(3)}, {}
    for overlap in (False, True):
        refresh, state = Refresher(optimizer, params, overlap), optimizer.init(params)
        rng, found[overlap] = np.random.default_rng(0), []
        for number in range(1, 5):
            grads = {"w": jnp.asarray(rng.standard_normal((3, 3)), jnp.float32)}
            state = refresh(optimizer.observe(grads, state), number)
            found[overlap].append(jax.device_get(optimizer.installed(state)))
    exact = found[False]
    for ours, want in zip(found[True], [exact[0], exact[0], *exact[1:3]], strict=True):
        assert_same(ours, want)


@pytest.mark.nightly(group="processes")
def test_an_overlapped_run_that_was_stopped_ends_as_one_never_stopped(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    changes = {**OVERLAP, "length": "9 steps", "log_every": 1, "checkpoint.every": "1 steps"}
    run(whole, "scratch", {**changes, "checkpoint.keep_last": 9})
    for step in (3, 8):  # killed there: what came after is gone
        saved = f"checkpoints/{step}"
        shutil.copytree(whole / saved, again / str(step) / saved)
        run(again / str(step), "scratch", changes)
        want = [row for row in rows(whole) if row["step"] > step]
        assert rows(again / str(step)) == want
    exact = tmp_path / "exact"
    exactly = {**changes, "optimizer.overlap": False, "checkpoint.keep_last": 9}
    run(exact, "scratch", exactly)
    assert [row["loss"] for row in rows(exact)] != [row["loss"] for row in rows(whole)]
    for before, after, step in ((exact, changes, 8), (whole, exactly, 5)):
        other = tmp_path / f"switched-{step}"  # what was saved the one way goes on the other
        saved = f"checkpoints/{step}"
        shutil.copytree(before / saved, other / saved)
        run(other, "scratch", after)
        assert [row["step"] for row in rows(other)] == list(range(step + 1, 10))
