"""Optimizers by name, clipping, learning rates, the mean of weights, partial training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.optim.optimizer import clip_by_global_norm, make_optimizer, update_ema
from adaperceiver_jax.optim.schedules import make_schedule
from adaperceiver_jax.optim.trainable import merge, split

PARAMS = {
    "write_head": {"norm": {"scale": 1, "bias": 2}, "kernel": 3},
    "output": {"token": 4},
    "blocks": {"kernel": 5},
}


@pytest.mark.parametrize("name", ["nadamw", "adamw"])
def test_adams_against_numpy(name):
    """In float64; the schedule counts from 0, weight decay is multiplied by it."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 5))
    params, m, v = np.ones(5), 0.0, 0.0
    optimizer = make_optimizer(
        name, lambda count: 0.1 * (1 + count), b1=0.8, b2=0.95, weight_decay=0.3
    )
    state, apply = optimizer.init({"w": jnp.ones(5)}), jax.jit(optimizer.apply)
    assert not any(optimizer.due(n) for n in (1, 30, 500, 600))
    for n, g in enumerate(grads, 1):
        grad = {"w": jnp.asarray(g, jnp.float32)}
        assert optimizer.observe(grad, state) is state
        updates, state = apply(grad, state, {"w": jnp.asarray(params, jnp.float32)})
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        mean = 0.8 * m + 0.2 * g if name == "nadamw" else m
        u = mean / (1 - 0.8**n) / (np.sqrt(v / (1 - 0.95**n)) + 1e-8)
        want = -0.1 * n * (u + 0.3 * params)
        np.testing.assert_allclose(updates["w"], want, rtol=1e-4, atol=1e-5)
        params = params + want


def test_soap_is_due_at_its_start_and_then_at_multiples():
    optimizer = make_optimizer("soap", 1e-3, precondition_frequency=4, start_preconditioning_step=6)
    assert [n for n in range(1, 20) if optimizer.due(n)] == [6, 8, 12, 16]
    assert type(optimizer.due(6)) is bool


@pytest.mark.parametrize("name", ["soap", "nadamw", "adamw"])
def test_frozen_parameters_have_no_state(name):
    params = {"blocks": {"w": jnp.ones((2, 3, 4))}, "head": {"w": jnp.ones(3)}}
    trained, frozen = split(params, ("head/.*",))
    state = make_optimizer(name, 1e-3).init(trained)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    kept, left_out = ("1_of_3'", "2_of_") if name == "soap" else ("head", "blocks")
    assert any(kept in n for n in names)
    assert not any(left_out in n for n in names)
    assert list(frozen) == ["blocks"]


def test_clipping_as_pytorch_does_it():
    grads = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[4.0]], jnp.bfloat16)}}
    clipped, norm = jax.jit(clip_by_global_norm)(grads, 2.5)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose(clipped["a"], [3 * 2.5 / (5 + 1e-6), 0], rtol=1e-6)
    assert clipped["b"]["c"].dtype == jnp.bfloat16
    same, norm = clip_by_global_norm(grads, 6.0)
    jax.tree.map(np.testing.assert_array_equal, same, grads)
    assert float(norm) == pytest.approx(5.0)
    tiny, _ = clip_by_global_norm({"a": jnp.full(1, 2e-6)}, 1e-6)
    np.testing.assert_allclose(tiny["a"], 2e-6 / 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        (dict(name="constant", lr=0.5, warmup_steps=4, warmup_lr=0.3), [0.3, 0.35, 0.4, 0.45, 0.5]),
        (dict(name="cosine", lr=1.0, steps=2, min_lr=0.2), [1, 0.6, 0.2, 0.2]),
        (
            dict(name="cosine", lr=1.0, min_lr=0.2, warmup_steps=1),
            [1e-6, 0.6 + 0.4 * 0.5**0.5, 0.6],
        ),
        (dict(name="poly", lr=1.0, steps=2, min_lr=0.2, power=2.0), [1, 0.4, 0.2, 0.2]),
    ],
)
def test_learning_rates(options, rates):
    schedule = make_schedule(**{"steps": 4, **options})
    np.testing.assert_allclose([float(schedule(n)) for n in range(len(rates))], rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="linear"), "schedule 'linear': must be one of cosine, poly, constant"),
        (dict(lr=0.0), r"lr=0\.0: must be above 0"),
        (dict(steps=0), "steps=0: must be at least 1"),
        (dict(warmup_steps=11), "warmup_steps=11: must be from 0 to the run's 10"),
        (dict(min_lr=2.0), r"min_lr=2\.0: must be from 0 to lr=1\.0"),
        (dict(warmup_steps=2, warmup_lr=-1.0), r"warmup_lr=-1\.0: must be from 0 to lr=1\.0"),
        (dict(power=0.0), r"power=0\.0: must be above 0"),
    ],
)
def test_bad_schedules_and_optimizers(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**{**dict(name="cosine", lr=1.0, steps=10), **options})
    with pytest.raises(ValueError, match="optimizer 'adam': must be one of soap, nadamw, adamw"):
        make_optimizer("adam", 1e-3)


def test_the_mean_keeps_its_type():
    mean = update_ema({"w": jnp.zeros(2)}, {"w": jnp.ones(2, jnp.bfloat16)}, 3, 0.75)
    assert mean["w"].dtype == jnp.float32
    np.testing.assert_allclose(mean["w"], [0.25, 0.25])


def test_split_and_merge():
    trained, frozen = split(PARAMS, ("write_head/norm/.*", "output/token"))
    assert trained == {"write_head": {"norm": {"scale": 1, "bias": 2}}, "output": {"token": 4}}
    assert frozen == {"write_head": {"kernel": 3}, "blocks": {"kernel": 5}}
    assert merge(trained, frozen) == PARAMS
    assert split(PARAMS, ()) == (PARAMS, {})
    assert merge(PARAMS, {}) == PARAMS
    with pytest.raises(ValueError, match=r"'write_head' matches no .* blocks, output, write_head"):
        split(PARAMS, ("output/.*", "write_head"))
    with pytest.raises(ValueError, match="must be a sequence of strings"):
        split(PARAMS, "output/.*")
