"""Early exit: one compiled loop over the blocks that stops when every sample has left."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import check_granularities, check_sub_network
from adaperceiver_jax.models.stepper import Stepper


@struct.dataclass
class EarlyExit:
    """The depth where each sample left, and its prediction there."""

    logits: jax.Array
    """(B, classes)"""
    depth: jax.Array
    """(B,) blocks run, int32"""


def early_exit(
    model: AdaPerceiver,
    params: Any,
    images: jax.Array,
    tau: float,
    num_tokens: int | None = None,
    width: int | None = None,
    per_sample: bool = True,
    token_granularities: Sequence[int] | None = None,
) -> EarlyExit:
    """Runs blocks until the class probabilities are confident, on images (B, H, W, C).

    After each block the latents are read out; a sample leaves when its largest probability is at
    least `tau`, at the latest after the last block. With per_sample=False all leave together,
    when the batch's mean confidence is at least tau, as in the reference. A new tau does not
    compile anew; a sample whose logits are not finite never leaves early.
    """
    if not isinstance(model, AdaPerceiver):
        raise ValueError(f"model={type(model).__name__}: only an AdaPerceiver can exit early")
    if model.config.num_classes is None:
        raise ValueError("num_classes=None: early exit needs a model with class logits")
    if jnp.ndim(tau) or (not isinstance(tau, jax.core.Tracer) and not 0 <= tau <= 1):
        raise ValueError(f"tau={tau}: must be a probability, 0 to 1")
    check_sub_network(model.config, num_tokens, width)
    granularities = None
    if token_granularities is not None:
        granularities = check_granularities(token_granularities)
    return _early_exit(
        model, params, images, tau, num_tokens, width, bool(per_sample), granularities
    )


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _early_exit(model, params, images, tau, num_tokens, width, per_sample, granularities):
    config = model.config
    stepper = Stepper(model, params, num_tokens, width, granularities)
    z = stepper.begin(images)
    batch = z.shape[0]

    def running(state):
        depth, _, _, _, active = state
        return (depth < config.depth) & active.any()

    def run_block(state):
        depth, z, logits, left_at, active = state
        z = stepper.block(z, depth)
        now = stepper.write(z)
        confidence = jax.nn.softmax(now).max(axis=-1)
        if not per_sample:
            confidence = jnp.broadcast_to(confidence.mean(), confidence.shape)
        logits = jnp.where(active[:, None], now, logits)
        left_at = jnp.where(active, depth + 1, left_at)
        return depth + 1, z, logits, left_at, active & ~(confidence >= tau)

    state = (
        jnp.int32(0),
        z,
        jnp.zeros((batch, config.num_classes), jnp.float32),
        jnp.zeros(batch, jnp.int32),
        jnp.ones(batch, bool),
    )
    _, _, logits, depth, _ = jax.lax.while_loop(running, run_block, state)
    return EarlyExit(logits, depth)
