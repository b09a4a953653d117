"""A run's training step as something to be timed."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from adaperceiver_jax.evaluate.costs import memory_of
from adaperceiver_jax.evaluate.speed import Program
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.tasks.shapes import make_step, teacher_made_up
from adaperceiver_jax.train.sharding import held


def step_program(config: RunConfig) -> Program:
    """Both programs of an update, compiled for the devices there are, with weights and a batch that
    are made up; a timm teacher's weights too.

    What the optimizer leaves to the hosts (SOAP's eigenvectors) is not in it.
    """
    config = teacher_made_up(config)
    step = make_step(config)
    programs = step.programs
    began = time.perf_counter()
    gradients = programs.gradients.lower(*step.gradients).compile()
    apply = programs.apply.lower(*step.apply).compile()
    seconds = time.perf_counter() - began

    *_, constant_shapes, batch_shapes = step.gradients
    key = jax.random.key(config.seed)
    constants = jax.device_put(
        step.task.constants(), jax.tree.map(lambda x: x.sharding, step.constants)
    )
    batch = {
        name: jax.device_put(_made_up(name, x), x.sharding) for name, x in batch_shapes.items()
    }
    held_state = [programs.init(key)]

    def call() -> None:
        state = held_state[0]
        given = {**constants, **state.memory}
        grads, opt_state, _ = gradients(state.params, state.opt_state, state.step, given, batch)
        state, norm = apply(state.replace(opt_state=opt_state), grads)  # type: ignore[attr-defined]
        held_state[0] = jax.block_until_ready((state, norm))[0]

    # What the run holds beside each program's arguments counts too.
    beside = held(programs.state.ema), held(constant_shapes) + held(batch_shapes)
    needs = [
        own + more
        for own, more in zip(map(memory_of, (gradients, apply)), beside, strict=True)
        if own is not None
    ]
    trained = step.apply[1]
    return Program(
        what="train",
        sub_network=None,
        batch=config.batch_size,
        call=call,
        flops=step.task.train_flops(trained) * config.batch_size,
        # Read and written: parameters, mean, optimizer's state; read: the rest.
        least_bytes=2 * held(programs.state) + held(constant_shapes) + held(batch_shapes),
        memory=max(needs, default=None),
        compile_seconds=seconds,
        devices=programs.mesh.size,
    )


def _made_up(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Noise for images, zeros for the rest: what a step takes does not depend on it."""
    if name == "image":
        return jax.random.randint(jax.random.key(1), shape.shape, 0, 256).astype(shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)
