"""Adding up the losses of many readouts of one pass (Algorithm 3 of the paper)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

SCHEDULES = ("linear", "uniform")


def depth_weights(depth: int, schedule: str = "linear") -> np.ndarray:
    """(L,) weight of the readout after block l: l / L ('linear') or 1 / L ('uniform')."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    steps = np.arange(1, depth + 1) if schedule == "linear" else np.ones(depth)
    return (steps / depth).astype(np.float32)


def weighted_mean(losses: jax.Array, weights: jax.typing.ArrayLike) -> jax.Array:
    """sum_r w_r loss_r / sum_r w_r over the readouts' losses (R,)."""
    return weighted_sum(losses, weights) / jnp.asarray(weights).sum()


def weighted_sum(losses: jax.Array, weights: jax.typing.ArrayLike) -> jax.Array:
    """sum_r w_r loss_r over the readouts' losses (R,): how feature losses are added."""
    weights = jnp.asarray(weights)
    chex.assert_rank(losses, 1)
    chex.assert_equal_shape([losses, weights])
    return (losses * weights).sum()
