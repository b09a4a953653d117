"""When SOAP's eigenvectors are begun, waited for and used."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.train.refresh import Refresher
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
        refresh=lambda state, number: Recorded(number, log),
        install=lambda state, found: found,
        installed=lambda state: state,
    )
    return Refresher(optimizer, overlap), log


def test_exactly_every_due_step_waits_for_its_own():
    refresh, log = recorded(overlap=False)
    assert [refresh(0, n, n) for n in (4, 6, 8)] == [4, 6, 8]
    assert log == ["begin 4", "wait 4", "begin 6", "wait 6", "begin 8", "wait 8"]


def test_overlapped_a_due_step_uses_those_of_the_one_before():
    refresh, log = recorded(overlap=True)
    used = [4]
    assert refresh(0, 4, 4) == 4  # the first are waited for
    for number in (6, 8, 10):
        used.append(refresh(used[-1], number, number))
    assert used == [4, 4, 6, 8]
    assert log == ["begin 4", "wait 4", "begin 6", "wait 6", "begin 8", "wait 8", "begin 10"]


def test_a_run_that_goes_on_uses_what_was_upcoming_when_it_was_saved():
    whole, _ = recorded(overlap=True)
    state = whole(0, 4, 4)
    assert whole.upcoming(state) == 4
    state = whole(state, 6, 6)
    assert whole.upcoming(state) == whole.upcoming(state) == 6
    again, log = recorded(overlap=True)
    again.resume(whole.upcoming(state))
    assert again(state, 8, 8) == whole(state, 8, 8) == 6
    assert log == ["begin 8"]


def test_the_eigenvectors_of_an_overlapped_step_are_the_exact_ones_of_the_step_before():
    optimizer = make_optimizer(
        "soap", 1e-3, b2=0.5, start_preconditioning_step=1, precondition_frequency=1
    )
    params = {"w": jnp.eye(3)}
    rng = np.random.default_rng(0)
    found = {}
    for overlap in (False, True):
        refresh, state = Refresher(optimizer, overlap), optimizer.init(params)
        rng = np.random.default_rng(0)
        found[overlap] = []
        for number in range(1, 5):
            grads = {"w": jnp.asarray(rng.standard_normal((3, 3)), jnp.float32)}
            state = refresh(optimizer.observe(grads, state), params, number)
            found[overlap].append(jax.device_get(optimizer.installed(state)))
    exact = found[False]
    for ours, want in zip(found[True], [exact[0], exact[0], *exact[1:3]], strict=True):
        assert_same(ours, want)


@pytest.mark.slow
def test_an_overlapped_run_that_was_stopped_ends_as_one_never_stopped(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    changes = {**OVERLAP, "length": "9 steps", "log_every": 1, "checkpoint.every": "1 steps"}
    run(whole, "scratch", {**changes, "checkpoint.keep_last": 9})
    for step in (3, 5, 8):  # killed there: what came after is gone
        saved = f"checkpoints/{step}"
        shutil.copytree(whole / saved, again / str(step) / saved)
        run(again / str(step), "scratch", changes)
        want = [row for row in rows(whole) if row["step"] > step]
        assert rows(again / str(step)) == want
    exact = tmp_path / "exact"
    run(exact, "scratch", {**changes, "optimizer.overlap": False})
    assert [row["loss"] for row in rows(exact)] != [row["loss"] for row in rows(whole)]
