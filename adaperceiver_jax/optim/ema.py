"""The running mean of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update_ema(ema: Any, params: Any, step: jax.Array | int, decay: float) -> Any:
    """decay * ema + (1 - decay) * params; at step 0 a copy of `params`, whatever `ema` held."""
    first = jnp.asarray(step) == 0
    return jax.tree.map(
        lambda mean, p: jnp.where(first, p, decay * mean + (1 - decay) * p).astype(mean.dtype),
        ema,
        params,
    )
