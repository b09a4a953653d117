"""NAdamW: Adam with Nesterov momentum and decoupled weight decay."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaperceiver_jax.optim.soap import scale_and_decay, unbias

EPS = 1e-8


class NAdamState(NamedTuple):
    """Moments in float32, of the parameters' shapes."""

    steps: jax.Array
    """() int32"""
    first: Any
    second: Any


def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """NAdamW with the look-ahead momentum unbiased as a whole, by 1 - b1^n.

    `optax.nadamw` instead unbiases its two terms apart, which gives other steps.
    """

    def init(params: Any) -> NAdamState:
        first, second = (
            jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params) for _ in range(2)
        )
        return NAdamState(jnp.zeros((), jnp.int32), first, second)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, NAdamState]:
        del params
        count = state.steps + 1
        mean_scale, square_scale = unbias(b1, count), unbias(b2, count)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.second, grads)
        direction = jax.tree.map(
            lambda m, v, g: (
                (b1 * m + (1 - b1) * g) / mean_scale / (jnp.sqrt(v / square_scale) + EPS)
            ),
            first,
            second,
            grads,
        )
        return direction, NAdamState(count, first, second)

    return optax.chain(
        optax.GradientTransformation(init, update), scale_and_decay(learning_rate, weight_decay)
    )
