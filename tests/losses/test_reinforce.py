"""Losses of learned policies: by hand, and REINFORCE's expectation against the exact gradient.

Sampled means may lie 5 standard errors from what they should be; numbers by hand agree to 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.losses.reinforce import (
    MOST,
    entropy,
    index_cost,
    regression_loss,
    reinforce_loss,
    reward,
)

pytestmark = pytest.mark.quick
LOGITS = jnp.array([[0.3, -0.5, 1.0], [0.0, 0.8, -0.2], [1.2, 0.1, 0.4], [-0.7, 0.2, 0.6]])
"""(images, choices)"""
REWARDS = jnp.array(
    [[-4.0, -1.0, -0.5], [-2.0, -2.5, -6.0], [-1.0, -3.0, -2.0], [-5.0, -4.0, -1.0]]
)
DRAWS = 20_000
SIGMAS = 5


def expected(logits: jax.Array) -> jax.Array:
    """Minus the mean reward, by going through every choice."""
    return -(jax.nn.softmax(logits) * REWARDS).sum(axis=-1).mean()


EXACT = jax.grad(expected)(LOGITS)


def estimates(advantage) -> np.ndarray:
    """(draws, images, choices): gradients of the loss, each of other actions.

    advantage: rewards (B,) of the drawn actions -> advantages (B,).
    """

    def one(key):
        actions = jax.random.categorical(key, LOGITS)
        rewards = jnp.take_along_axis(REWARDS, actions[:, None], axis=-1)[:, 0]
        return jax.grad(reinforce_loss)(LOGITS, actions, advantage(rewards))

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS)))


def deviation(samples: np.ndarray, exact) -> float:
    """The largest distance of the samples' mean, in standard errors."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return float((np.abs(samples.mean(axis=0) - exact) / error).max())


def test_the_expected_gradient_is_that_of_the_expected_reward_and_a_baseline_steadies_it():
    plain, based = estimates(lambda rewards: rewards), estimates(lambda rewards: rewards + 2.5)
    for samples in (plain, based):
        assert deviation(samples, EXACT) < SIGMAS
    assert based.var(axis=0).sum() < 0.6 * plain.var(axis=0).sum()


def test_the_loss_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    got = reinforce_loss(logits, jnp.array([1, 2]), jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(got, -(2 * np.log(0.25) - np.log(0.7)) / 2, rtol=1e-6)
    actions = jnp.array([0, 1, 2, 0])
    to_advantages = jax.grad(lambda a: reinforce_loss(LOGITS, actions, a))(jnp.ones(4))
    np.testing.assert_array_equal(to_advantages, np.zeros(4))


def test_rewards_and_costs_by_hand():
    np.testing.assert_allclose(index_cost(5), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(index_cost(2), [0, 1])
    np.testing.assert_array_equal(index_cost(1), [0])
    got = reward(jnp.array([0.0, 2.0]), jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(got, [-0.025, -6.05], rtol=1e-6)
    got = reward(jnp.array([2.0]), jnp.array([0.5]), scale=1.0, cost_weight=4.0)
    np.testing.assert_allclose(got, [-4.0], rtol=1e-6)


def test_entropies_by_hand():
    logits = jnp.array([[5.0, 5.0, 5.0, 5.0], [200.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(entropy(logits), [np.log(4), 0], rtol=1e-6, atol=1e-30)
    pair = jnp.log(jnp.array([[0.25, 0.75]]))
    want = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(entropy(pair), [want], rtol=1e-6)


def test_regression_by_hand_and_a_huge_loss_counts_as_the_most():
    losses = jnp.array([[0.5, 2.0], [1.0, 1e6]])  # (budgets, images)
    predicted = jnp.array([[-0.5, -1.0], [-2.0, -MOST + 3]])
    got = regression_loss(predicted, losses)
    np.testing.assert_allclose(got, [(0 + 1) / 2, (1 + 9) / 2], rtol=1e-6)
