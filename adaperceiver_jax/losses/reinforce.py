"""Losses of learned policies: REINFORCE, and regression of every budget's loss."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

MOST = 10.0
"""Losses beyond it are regressed as it: squared errors of a few wrong, sure predictions would
outweigh all other images."""


def index_cost(choices: int) -> np.ndarray:
    """(choices,) float32, from cheap to dear: index / (choices - 1); 0 of an only choice."""
    return np.arange(choices, dtype=np.float32) / max(choices - 1, 1)


def reward(
    losses: jax.Array, costs: jax.Array, scale: float = 3.0, cost_weight: float = 0.05
) -> jax.Array:
    """Cross-entropies (B,) and costs (B,) of the budgets taken -> rewards (B,)."""
    chex.assert_rank([losses, costs], 1)
    chex.assert_equal_shape([losses, costs])
    return -scale * losses - cost_weight * costs


def reinforce_loss(logits: jax.Array, actions: jax.Array, advantages: jax.Array) -> jax.Array:
    """Logits (B, A), drawn actions (B,) and an advantage an image (B,) -> (): its gradient is, in
    expectation, that of minus the mean reward.

    Log-probabilities of axes that are drawn independently add up, and so do these losses.
    """
    chex.assert_rank([logits, actions, advantages], [2, 1, 1])
    chex.assert_equal_shape_prefix([logits, actions, advantages], 1)
    log_probs = jax.nn.log_softmax(logits)
    drawn = jnp.take_along_axis(log_probs, actions[:, None], axis=-1)[:, 0]
    return -(jax.lax.stop_gradient(advantages) * drawn).mean()


def entropy(logits: jax.Array) -> jax.Array:
    """Logits (B, A) -> entropies (B,) in nats; those of several axes add up."""
    log_probs = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


def regression_loss(predicted: jax.Array, losses: jax.Array) -> jax.Array:
    """Predicted negative losses and losses, (..., B) of every budget -> (B,): the mean squared
    error over the budgets."""
    chex.assert_equal_shape([predicted, losses])
    errors = predicted + jnp.minimum(losses, MOST)
    return jnp.square(errors).mean(axis=range(errors.ndim - 1))
