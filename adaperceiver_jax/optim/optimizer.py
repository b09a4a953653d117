"""Optimizers by name, as a trainer needs them; clipping, and the running mean of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from adaperceiver_jax.optim.eigenvectors import Factors, Refresh
from adaperceiver_jax.optim.soap import Soap, scale_and_decay, unbias

NAMES = ("soap", "nadamw", "adamw")
NADAM_EPS = 1e-8


def _never(*_: Any) -> Any:
    raise NotImplementedError("no step of this optimizer is due")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A step: observe, refresh if the step is due, apply. The state is a tree of arrays."""

    init: Callable[[Any], Any]
    """params -> state"""
    observe: Callable[[Any, Any], Any]
    """(grads, state) -> state; belongs in the program that computes the gradients."""
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]
    """(grads, state, params) -> (updates to be added to params, state)"""
    due: Callable[[int], bool] = lambda step: False
    """True if step n, the first being 1, needs `refresh` between `observe` and `apply`."""
    first: int = 0
    """The first step that is due; 0: none is."""
    refresh: Callable[[Any, Any], Refresh] = _never
    """(state, params) -> what the hosts are working on from then on, outside of any compiled
    program; all processes must call it, and ask for its result."""
    install: Callable[[Any, Factors], Any] = _never
    """(state, a refresh's result) -> state"""
    installed: Callable[[Any], Factors] = _never
    """state -> the eigenvectors it has."""


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    precondition_frequency: int = 30,
    start_preconditioning_step: int = 500,
    max_preconditioner_dim: int = 8192,
    mesh: Mesh | None = None,
) -> Optimizer:
    """An optimizer by name: 'soap', 'nadamw' or 'adamw', all with decoupled weight decay.

    Args:
      name: one of these.
      learning_rate: a number, or a function of the step, which counts from 0.
      b1: decay of the gradients' mean.
      b2: decay of their squares (and of SOAP's factors).
      weight_decay: multiplied by the learning rate.
      precondition_frequency: of SOAP, as are those below: steps between two refreshes.
      start_preconditioning_step: the first refresh.
      max_preconditioner_dim: the largest factor.
      mesh: what SOAP's work is dealt out over.
    """
    if name == "soap":
        parts = Soap(
            b1=b1,
            b2=b2,
            precondition_frequency=precondition_frequency,
            start_preconditioning_step=start_preconditioning_step,
            max_preconditioner_dim=max_preconditioner_dim,
            mesh=mesh,
        )
        return _soap(parts, scale_and_decay(learning_rate, weight_decay))
    if name == "nadamw":
        return _plain(nadamw(learning_rate, b1, b2, weight_decay))
    if name == "adamw":
        return _plain(optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay))
    raise ValueError(f"optimizer {name!r}: must be one of {', '.join(NAMES)}")


def _soap(parts: Soap, tail: optax.GradientTransformation) -> Optimizer:
    """The state is (SoapState, the tail's)."""

    def apply(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        direction, first = parts.precondition(grads, state[0])
        updates, second = tail.update(direction, state[1], params)
        return updates, (first, second)

    return Optimizer(
        init=lambda params: (parts.init(params), tail.init(params)),
        observe=lambda grads, state: (parts.observe(grads, state[0]), state[1]),
        due=lambda step: bool(parts.due(step)),
        refresh=lambda state, params: parts.begin_refresh(state[0], params),
        install=lambda state, new: (state[0]._replace(eigenvectors=new), state[1]),
        installed=lambda state: state[0].eigenvectors,
        apply=apply,
        first=parts.start_preconditioning_step,
    )


def _plain(transform: optax.GradientTransformation) -> Optimizer:
    return Optimizer(
        init=transform.init, observe=lambda grads, state: state, apply=transform.update
    )


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
                (b1 * m + (1 - b1) * g) / mean_scale / (jnp.sqrt(v / square_scale) + NADAM_EPS)
            ),
            first,
            second,
            grads,
        )
        return direction, NAdamState(count, first, second)

    return optax.chain(
        optax.GradientTransformation(init, update), scale_and_decay(learning_rate, weight_decay)
    )


def global_norm(tree: Any) -> jax.Array:
    """The norm of all arrays of a tree together, (), in float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def clip_by_global_norm(grads: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """Gradients scaled by max_norm / (norm + 1e-6) where that is below 1, and their norm, ()."""
    norm = global_norm(grads)
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), norm


def update_ema(ema: Any, params: Any, step: jax.Array | int, decay: float) -> Any:
    """decay * ema + (1 - decay) * params; at step 0 a copy of `params`, whatever `ema` held."""
    first = jnp.asarray(step) == 0
    return jax.tree.map(
        lambda mean, p: jnp.where(first, p, decay * mean + (1 - decay) * p).astype(mean.dtype),
        ema,
        params,
    )
