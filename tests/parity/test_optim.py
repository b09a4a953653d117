"""Optimizers, learning rates and the mean of weights against the reference's own numbers.

Parameters are held to 1e-5 (absolute; they move by 0.003 to 0.01 a step), and so are the mean of
weights; learning rates to 1e-6 of their value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaperceiver_jax.optim.optimizer import make_optimizer, update_ema
from adaperceiver_jax.optim.schedules import make_schedule
from adaperceiver_jax.optim.soap import soap
from tests.parity.reading import Golden, read

BAR = 1e-5
SOAP_KEYS = (
    "weight_decay",
    "precondition_frequency",
    "start_preconditioning_step",
    "max_preconditioner_dim",
)


def arrays_at(golden: Golden, kind: str, step: str) -> dict:
    """The golden's gradients (kind 'grad', first step '0') or parameters ('param', 'init')."""
    count = len(golden.cases["shapes"])
    names = [f"{kind}.{step}.{i}" if kind == "grad" else f"param.{i}.{step}" for i in range(count)]
    return {f"p{i}": jnp.asarray(golden.arrays[name]) for i, name in enumerate(names)}


def plain(cases: dict):
    """One compiled program a step."""
    b1, b2 = cases["betas"]
    tx = soap(cases["lr"], b1, b2, **{key: cases[key] for key in SOAP_KEYS})

    @jax.jit
    def step(grads, state, params, number):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return tx.init, step


def in_three_parts(cases: dict):
    """As a trainer does it: the eigenvectors between two programs."""
    b1, b2 = cases["betas"]
    keys = {key: cases[key] for key in SOAP_KEYS}
    optimizer = make_optimizer("soap", lambda count: cases["lr"], b1=b1, b2=b2, **keys)
    observe = jax.jit(optimizer.observe)

    @jax.jit
    def apply(grads, state, params):
        updates, state = optimizer.apply(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(grads, state, params, number):
        state = observe(grads, state)
        if optimizer.due(number):
            state = optimizer.install(state, optimizer.refresh(state, params).result())
        return apply(grads, state, params)

    return optimizer.init, step


@pytest.mark.parametrize("name", ["optimizer_soap", "optimizer_soap_merged"])
@pytest.mark.parametrize("way", [plain, in_three_parts])
def test_soap(goldens, name, way):
    golden = read(goldens / name)
    init, step = way(golden.cases)
    params = arrays_at(golden, "param", "init")
    state = init(params)
    for number in range(golden.cases["steps"]):
        params, state = step(arrays_at(golden, "grad", str(number)), state, params, number + 1)
        for key, want in arrays_at(golden, "param", str(number)).items():
            error = np.abs(params[key] - want).max()
            assert error <= BAR, f"step {number + 1}, {key} {want.shape}: off by {error:.1e}"


def test_nadamw(goldens):
    golden = read(goldens / "optimizer_nadamw")
    cases = golden.cases
    b1, b2 = cases["betas"]
    optimizer = make_optimizer(
        "nadamw", cases["lr"], b1=b1, b2=b2, weight_decay=cases["weight_decay"]
    )
    params = {"w": jnp.asarray(golden.arrays["param.init"])}
    state, apply = optimizer.init(params), jax.jit(optimizer.apply)
    for grad, want in zip(golden.named("grad", 10), golden.named("param", 10), strict=True):
        updates, state = apply({"w": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], want, rtol=0, atol=BAR)


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_learning_rates(goldens, name):
    golden = read(goldens / "schedules")
    case = golden.cases[name]
    schedule = make_schedule(
        case["sched"],
        lr=case["base_lr"],
        steps=case["num_epochs"],
        warmup_steps=case["warmup_epochs"],
        warmup_lr=case["warmup_lr"],
        min_lr=case["min_lr"],
        power=case.get("decay_rate", 1.0),
    )
    ours = jax.jit(jax.vmap(schedule))(jnp.arange(case["num_epochs"]))
    np.testing.assert_allclose(ours, golden.arrays[name], rtol=1e-6, atol=1e-9)


def test_mean_of_weights(goldens):
    golden = read(goldens / "ema")
    update = jax.jit(lambda *args: update_ema(*args, golden.cases["decay"]))
    mean = {"w": jnp.full((2, 3), jnp.nan)}
    for step, weight in enumerate(golden.named("weight", 5)):
        mean = update(mean, {"w": jnp.asarray(weight)}, jnp.asarray(step))
        np.testing.assert_allclose(mean["w"], golden.arrays[f"ema.{step}"], rtol=0, atol=BAR)


def test_the_goldens_hold_what_is_tested(goldens):
    """Several refreshes, a merged and a cut parameter; else agreement would say little."""
    cases = [read(goldens / name).cases for name in ("optimizer_soap", "optimizer_soap_merged")]
    for case in cases:
        late = case["steps"] - case["start_preconditioning_step"]
        assert late > 3 * case["precondition_frequency"]
    assert max(max(shape) for shape in cases[0]["shapes"]) > cases[0]["max_preconditioner_dim"]
