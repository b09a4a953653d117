"""Learning rates, one a step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

NAMES = ("cosine", "poly", "constant")


def make_schedule(
    name: str,
    lr: float,
    steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 1e-6,
    min_lr: float = 0.0,
    power: float = 1.0,
) -> optax.Schedule:
    """The learning rate as a function of the step, which counts from 0.

    It rises linearly from `warmup_lr` to `lr`, then follows the curve as if that had run from
    step 0, and stays at its end from `steps` on.

    Args:
      name: 'cosine' and 'poly' go from `lr` down to `min_lr`, 'constant' stays at `lr`.
      lr: the highest.
      steps: of the whole run.
      warmup_steps: of them, those of the rise.
      warmup_lr: the rise's first.
      min_lr: the curve's last.
      power: of 'poly'; 1 is a line.
    """
    if name not in NAMES:
        raise ValueError(f"schedule {name!r}: must be one of {', '.join(NAMES)}")
    if lr <= 0:
        raise ValueError(f"lr={lr}: must be above 0")
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(
            f"warmup_steps={warmup_steps}: must be from 0 to the run's {steps}; shorten the "
            "warm-up or lengthen the run"
        )
    if name != "constant" and not 0 <= min_lr <= lr:
        raise ValueError(f"min_lr={min_lr}: must be from 0 to lr={lr}")
    if warmup_steps and not 0 <= warmup_lr <= lr:
        raise ValueError(f"warmup_lr={warmup_lr}: must be from 0 to lr={lr}")
    if power <= 0:
        raise ValueError(f"power={power}: must be above 0")

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip(jnp.asarray(count, jnp.float32) / steps, 0.0, 1.0)
        if name == "cosine":
            rate = min_lr + (lr - min_lr) * 0.5 * (1 + jnp.cos(math.pi * done))
        elif name == "poly":
            rate = min_lr + (lr - min_lr) * (1 - done) ** power
        else:
            rate = jnp.full_like(done, lr)
        if not warmup_steps:
            return rate
        rise = warmup_lr + (lr - warmup_lr) / warmup_steps * jnp.asarray(count, jnp.float32)
        return jnp.where(jnp.asarray(count) < warmup_steps, rise, rate)

    return schedule
