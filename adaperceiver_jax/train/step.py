"""A run's state and one update of it: two compiled programs, the hosts' SOAP between them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.data.pipeline import BAD
from adaperceiver_jax.optim.eigenvectors import Factors, Refresh
from adaperceiver_jax.optim.optimizer import (
    Optimizer,
    clip_by_global_norm,
    global_norm,
    update_ema,
)
from adaperceiver_jax.optim.trainable import merge, split
from adaperceiver_jax.train.reports import BAD_IMAGES
from adaperceiver_jax.train.sharding import BATCH, gather, placed, replicated, tree_shardings
from adaperceiver_jax.train.task import COUNT, Batch, Metrics, SubNetwork, Task


@struct.dataclass
class TrainState:
    """A run after `step` updates."""

    step: jax.Array
    """() int32"""
    params: Any
    """All parameters, trained and frozen."""
    ema: Any
    """The running mean of the trained ones; the frozen ones are their own mean."""
    opt_state: Any
    """The optimizer's state, of the trained ones only."""
    memory: dict[str, jax.Array] = struct.field(default_factory=dict)
    """State that the task carries across steps; most have none."""
    upcoming: dict[str, Any] = struct.field(default_factory=dict)
    """Only in a checkpoint: the eigenvectors that the next refresh begins to use, where the hosts
    find them while steps go on."""

    def ema_params(self) -> Any:
        """The weights that are evaluated and handed on: all parameters, EMA where trained."""
        return unflatten_dict(flatten_dict(self.params) | flatten_dict(self.ema))


class Refresher:
    """New eigenvectors where a step is due; all processes must ask for the same, in one order.

    Exactly, that step waits for them. Overlapped, they are used from the next due step on, so that
    the hosts have all the steps between to find them; only the first are waited for.
    """

    def __init__(self, optimizer: Optimizer, params: Any, overlap: bool = False) -> None:
        """params: those that are trained, or their shapes."""
        self._optimizer, self._params, self.overlap = optimizer, params, overlap
        self._begun: Refresh | None = None
        self._found: Factors | None = None
        """The eigenvectors that come after those in use, once they are there."""
        self.waited = 0.0
        """Seconds, in all, in which a run waited for the hosts."""

    def __call__(self, opt_state: Any, number: int) -> Any:
        """The optimizer's state that step `number`, which is due, goes on with."""
        with self._counted():
            if not self.overlap or number <= self._optimizer.first:
                found = self._begin(opt_state).result()
            else:
                found = self._upcoming() or self._optimizer.installed(opt_state)
                self._begun, self._found = self._begin(opt_state), None
        return self._optimizer.install(opt_state, found)

    def to_save(self, step: int) -> Factors:
        """The part that `resume` needs of a run saved after `step`, next to its state: the
        eigenvectors that the next due step begins to use, if the state does not tell them.

        Right after a due step its factors do: they are those that are being decomposed, and nobody
        waits.
        """
        if not self.overlap or self._optimizer.due(step):
            return {}
        with self._counted():
            return self._upcoming() or {}

    def resume(self, opt_state: Any, step: int, upcoming: Factors) -> None:
        """Goes on where a run was saved after `step`, with what `to_save` gave."""
        self._begun, self._found = None, upcoming or None
        if self.overlap and not upcoming and self._optimizer.due(step):
            self._begun = self._begin(opt_state)

    def _begin(self, opt_state: Any) -> Refresh:
        return self._optimizer.refresh(opt_state, self._params)

    def _upcoming(self) -> Factors | None:
        """Waits for what was begun; None: nothing was."""
        if self._begun is not None:
            self._found, self._begun = self._begun.result(), None
        return self._found

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a run."""

    init: Callable[[jax.Array], TrainState]
    """A key -> a fresh, sharded state."""
    begin: Callable[[Any], TrainState]
    """Parameters -> the sharded state of a run that starts with them."""
    update: Callable[[TrainState, Any, Batch, int], tuple[TrainState, Metrics]]
    """(state, constants, batch, number of the step, from 1) -> the next state, which takes the
    state's place in memory, and the step's metrics, still on the devices."""
    gradients: Any
    """The first program of an update, jitted: (params, optimizer state, step, constants and memory,
    batch) -> (gradients, optimizer state, metrics)."""
    apply: Any
    """The second, jitted: (state, gradients) -> (the next state, norm of the updates)."""
    evaluate: Callable[[TrainState, Any, Batch, SubNetwork | None], Metrics]
    """Sums over a batch, by EMA weights, and COUNT; samples of 'weight' 0 do not count."""
    refresher: Refresher
    mesh: Mesh
    state: TrainState
    """The state's shapes and dtypes, with their shardings, as it is saved."""

    def to_save(self, state: TrainState, step: int) -> TrainState:
        """The state after a step as a checkpoint has to hold it."""
        return state.replace(upcoming=self.refresher.to_save(step))  # type: ignore[attr-defined]

    def resume(self, state: TrainState) -> TrainState:
        """The state that goes on from a checkpoint."""
        self.refresher.resume(state.opt_state, int(state.step), state.upcoming)
        return state.replace(upcoming={})  # type: ignore[attr-defined]


def loss_and_gradients(
    task: Task,
    trained: Any,
    frozen: Any,
    constants: Any,
    samples: Any,
    shared: Any,
    key: jax.Array,
    parts: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Metrics, Any]:
    """The metrics ('loss' and what the task gives beside it) and gradients of one batch.

    With `parts`, the batch is cut into as many and gone through one after another; their mean is
    the whole batch's.
    """

    def compute(trained: Any, samples: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        loss, losses = task.loss(merge(trained, frozen), constants, samples, shared, key)
        return loss, {"loss": loss, **losses}

    gradient = jax.grad(compute, has_aux=True)
    if parts == 1:
        grads, metrics = gradient(trained, samples, key)
        return metrics, grads

    def cut(x: jax.Array) -> jax.Array:
        """(B, ...) -> (parts, B / parts, ...), every device keeping its own samples."""
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, *BATCH)))

    def add(total: Any, part: tuple[Any, jax.Array]) -> tuple[Any, None]:
        grads, metrics = gradient(trained, *part)
        return jax.tree.map(jnp.add, total, (grads, metrics)), None

    cut_samples, keys = jax.tree.map(cut, samples), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], cut_samples)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        jax.eval_shape(gradient, trained, first, keys[0]),
    )
    total, _ = jax.lax.scan(add, zeros, (cut_samples, keys))
    grads, metrics = jax.tree.map(lambda x: x / parts, total)
    return metrics, grads


def make_programs(
    task: Task,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    seed: int,
    clip: float,
    ema: float,
    accumulate: int = 1,
    train_only: tuple[str, ...] = (),
    rules: tuple[tuple[str, str], ...] = (),
    reduce_in: str = "float32",
    overlap: bool = False,
) -> Programs:
    """The programs of a run; each is compiled when it is first called.

    Args:
      rules: how arrays are split, before sharding.RULES.
      reduce_in: dtype in which kernels' gradients are summed over the devices.
      overlap: the hosts' share of the optimizer is done while steps go on.
    """
    kernels = jnp.bfloat16 if reduce_in == "bfloat16" else None

    def begin(params: Any) -> TrainState:
        trained, _ = split(params, train_only)
        # The mean's first update copies the weights, whatever it held before.
        mean = jax.tree.map(jnp.copy, trained)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, mean, optimizer.init(trained), task.memory())

    def init(key: jax.Array) -> TrainState:
        return begin(task.init_params(key))

    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))  # compiles nothing, not even a key
    shardings = tree_shardings(shapes, mesh, rules)
    grad_shardings, _ = split(shardings.params, train_only)
    refresher = Refresher(optimizer, shapes.ema, overlap and optimizer.first > 0)
    whole = replicated(mesh)

    @functools.partial(
        jax.jit,
        donate_argnums=1,
        out_shardings=(grad_shardings, shardings.opt_state, whole),
    )
    def gradients(
        params: Any, opt_state: Any, step: jax.Array, constants: Any, batch: Batch
    ) -> tuple[Any, Any, Metrics]:
        draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
        samples, shared = task.draw(batch, draw_key, step)
        trained, frozen = split(gather(params, mesh, kernels), train_only)
        metrics, grads = loss_and_gradients(
            task, trained, frozen, constants, samples, shared, loss_key, accumulate, mesh
        )
        grads = jax.lax.with_sharding_constraint(grads, grad_shardings)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        grads, metrics["grad_norm"] = clip_by_global_norm(grads, clip)
        if BAD in batch:
            metrics[BAD_IMAGES] = batch[BAD].sum()
        return grads, optimizer.observe(grads, opt_state), metrics

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, whole))
    def apply(state: TrainState, grads: Any) -> tuple[TrainState, jax.Array]:
        trained, frozen = split(state.params, train_only)
        updates, opt_state = optimizer.apply(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        mean = update_ema(state.ema, trained, state.step, ema)
        params = merge(trained, frozen)
        state = TrainState(state.step + 1, params, mean, opt_state, state.memory)
        return state, global_norm(updates)

    @functools.partial(jax.jit, out_shardings=whole)
    def remember(memory: dict[str, jax.Array], metrics: Metrics) -> dict[str, jax.Array]:
        return task.remember(memory, metrics)

    def update(
        state: TrainState, constants: Any, batch: Batch, number: int
    ) -> tuple[TrainState, Metrics]:
        grads, opt_state, metrics = gradients(
            state.params, state.opt_state, state.step, {**constants, **state.memory}, batch
        )
        memory = remember(state.memory, metrics) if state.memory else {}
        # What is not finite has no eigenvectors; the loop sees it in the metrics, and stops.
        if optimizer.due(number) and math.isfinite(metrics["grad_norm"]):
            opt_state = refresher(opt_state, number)
        state = state.replace(opt_state=opt_state, memory=memory)  # type: ignore[attr-defined]
        state, norm = apply(state, grads)
        return state, {**metrics, "update_norm": norm}

    @functools.partial(jax.jit, static_argnums=3, out_shardings=whole)
    def evaluate(
        state: TrainState, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> Metrics:
        weight = batch["weight"]
        params = gather(state.ema_params(), mesh)
        values = task.evaluate(params, constants, batch, sub_network)

        def total(value: jax.Array) -> jax.Array:
            counts = jnp.expand_dims(weight > 0, tuple(range(1, value.ndim)))
            return jnp.where(counts, value, 0).sum(axis=0)

        return {**{name: total(value) for name, value in values.items()}, COUNT: weight.sum()}

    upcoming = optimizer.installed(shapes.opt_state) if refresher.overlap else {}
    saved = shapes.replace(upcoming=upcoming)
    return Programs(
        init=jax.jit(init, out_shardings=shardings),
        begin=jax.jit(begin, out_shardings=shardings, donate_argnums=0),
        update=update,
        gradients=gradients,
        apply=apply,
        evaluate=evaluate,
        refresher=refresher,
        mesh=mesh,
        state=placed(saved, tree_shardings(saved, mesh, rules)),
    )
