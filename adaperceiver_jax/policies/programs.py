"""The compiled programs of serving: embedding, reading, and a segment of blocks with exit tests."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adaperceiver_jax.models.stepper import Stepper


class Segment(NamedTuple):
    latents: jax.Array
    """(B, N, D)"""
    logits: jax.Array
    """(B, classes), of images that left"""
    left_at: jax.Array
    """(B,) the depth at which an image left; 0 if it did not"""
    depth: jax.Array
    """Where the segment ended."""
    tests: jax.Array
    """How often all images were tested."""


@functools.partial(jax.jit, static_argnums=0)
def embed(model, params, images):
    return model.apply({"params": params}, images, method="embed_once")


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(model, num_tokens, params, embedded):
    """Embedded images -> latents (B, N, D), and the folded query of every test of them."""
    stepper = Stepper(model, params, num_tokens)
    return stepper.begin(embedded), stepper.folded


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_segment(model, num_tokens, width, params, latents, folded, first, least, ceiling, tau):
    """Blocks from `first` on, until no more than `least` images are left; an image of ceiling 0 is
    padding."""
    stepper = Stepper(model, params, num_tokens, width, folded=folded)

    def here(left_at):
        return (left_at == 0) & (ceiling > 0)

    def running(state):
        return here(state.left_at).sum() > least

    def to_next_test(state):
        """Blocks, up to a depth where some image is tested."""

        def untested(carry):
            _, depth = carry
            may_leave = here(state.left_at) & ((depth >= ceiling) | (tau <= 1))
            return (depth == state.depth) | ~may_leave.any()

        def run_block(carry):
            z, depth = carry
            return stepper.block(z, depth), depth + 1

        return jax.lax.while_loop(untested, run_block, (state.latents, state.depth))

    def step(state):
        z, depth = to_next_test(state)
        now = stepper.write(z)
        sure = jax.nn.softmax(now).max(axis=-1) >= tau
        leaves = here(state.left_at) & (sure | (depth >= ceiling))
        return Segment(
            z,
            jnp.where(leaves[:, None], now, state.logits),
            jnp.where(leaves, depth, state.left_at),
            depth,
            state.tests + 1,
        )

    batch = len(latents)
    return jax.lax.while_loop(
        running,
        step,
        Segment(
            latents,
            jnp.zeros((batch, model.config.num_classes), jnp.float32),
            jnp.zeros(batch, jnp.int32),
            jnp.asarray(first, jnp.int32),
            jnp.int32(0),
        ),
    )
