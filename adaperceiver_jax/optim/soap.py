"""SOAP: Adam in the eigenbasis of Shampoo's factors, with the step length of plain Adam.

For a gradient G with k axes, at step n = 1, 2, ...:

    F_i = b2 F_i + (1 - b2) G G^T             over all axes but i             `observe`
    Q_i = eigenvectors of F_i / (1 - b2^n)    only where `due`                `refresh`
    v   = b2 v + (1 - b2) (Q^T G Q)^2         g, m: second and first moment   `precondition`
    a   = mean / (sqrt(g) + 1e-8)             Adam's direction, moments unbiased
    u   = Q (Q^T mean Q / (sqrt(v) + 1e-12)) Q^T |a| / |.|                    a before `start`

A parameter below the name "blocks" has a leading axis that counts parameters: each has its own
factors, norms and eigenvectors. `layout.py` says which axes have factors.

The state mirrors the tree of parameters, all in float32, with no shape depending on the devices:
`first`, `second` and `rotated` (m, g, v) have the parameter's shape; `factors` and `eigenvectors`
have, in a parameter's place, a tuple of arrays (*batch, m, m padded), one for each block and axis.
The last axis is zero beyond m and, where m > 128, a multiple of 128 long, so that it can be split
over devices.
"""

from __future__ import annotations

import dataclasses
import math
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaperceiver_jax.optim.eigenvectors import eigenvectors_in_graph, eigenvectors_on_hosts
from adaperceiver_jax.optim.layout import Layout, layout_of, pad_axis, padded

GRAFT_EPS = 1e-8
EPS = 1e-12
NORM_EPS = 1e-16


class SoapState(NamedTuple):
    """What SOAP remembers; the module says how it is laid out."""

    steps: jax.Array
    """() int32: gradients observed."""
    factors: Any
    eigenvectors: Any
    first: Any
    second: Any
    rotated: Any


def unbias(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count, exact to float32 also where decay^count is close to 1."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soap:
    """The parts of a SOAP step; learning rate and weight decay are not among them."""

    b1: float = 0.9
    b2: float = 0.999
    precondition_frequency: int = 30
    """Steps between two refreshes."""
    start_preconditioning_step: int = 500
    """The first refresh; plain Adam before."""
    max_preconditioner_dim: int = 8192

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        for name in (
            "precondition_frequency",
            "start_preconditioning_step",
            "max_preconditioner_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def init(self, params: Any) -> SoapState:
        """The state before the first step."""

        def each(make: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, p: tuple(make(shape) for shape in self._layout(path, p).factors),
                params,
            )

        def zeros() -> Any:
            return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

        return SoapState(
            steps=jnp.zeros((), jnp.int32),
            factors=each(lambda shape: jnp.zeros(shape, jnp.float32)),
            eigenvectors=each(lambda shape: jnp.broadcast_to(jnp.eye(shape[-2], shape[-1]), shape)),
            first=zeros(),
            second=zeros(),
            rotated=zeros(),
        )

    def due(self, step: Any) -> Any:
        """Whether step n (from 1; an int, or an array inside a program) has new eigenvectors."""
        start = self.start_preconditioning_step
        late = (step > start) & (step % self.precondition_frequency == 0)
        return (step == start) | late

    def observe(self, grads: Any, state: SoapState) -> SoapState:
        """Counts a step, and its gradients into the factors."""

        def one(path: tuple, grad: jax.Array, factors: tuple[jax.Array, ...]) -> tuple:
            layout = self._layout(path, grad)
            blocks = layout.cut(grad.astype(jnp.float32))
            return tuple(
                self.b2 * factor + (1 - self.b2) * _gram(block, layout.batch, axis)
                for block, group in zip(blocks, layout.group(factors), strict=True)
                for axis, factor in enumerate(group)
            )

        factors = jax.tree_util.tree_map_with_path(one, grads, state.factors)
        return state._replace(steps=state.steps + 1, factors=factors)

    def refresh(self, state: SoapState) -> SoapState:
        """New eigenvectors, inside a compiled program."""
        scale = unbias(self.b2, state.steps)
        return state._replace(eigenvectors=eigenvectors_in_graph(state.factors, scale))

    def refresh_on_hosts(self, state: SoapState) -> SoapState:
        """New eigenvectors by LAPACK on the hosts, outside of any compiled program.

        All processes must call it. FloatingPointError names a parameter with a factor that is
        not finite.
        """
        vectors = eigenvectors_on_hosts(
            state.factors, unbias(self.b2, state.steps), state.eigenvectors
        )
        return state._replace(eigenvectors=vectors)

    def precondition(self, grads: Any, state: SoapState) -> tuple[Any, SoapState]:
        """The direction of the step, float32 in the parameters' shapes, and the state after it.

        `observe` must have seen the same gradients.
        """
        mean_scale, square_scale = unbias(self.b1, state.steps), unbias(self.b2, state.steps)
        started = state.steps >= self.start_preconditioning_step

        def one(
            path: tuple,
            grad: jax.Array,
            vectors: tuple[jax.Array, ...],
            first: jax.Array,
            second: jax.Array,
            rotated: jax.Array,
        ) -> tuple[jax.Array, ...]:
            layout = self._layout(path, grad)
            grad = grad.astype(jnp.float32)
            groups = layout.group(vectors)
            first = self.b1 * first + (1 - self.b1) * grad
            second = self.b2 * second + (1 - self.b2) * grad**2
            rotated = self.b2 * rotated + (1 - self.b2) * _rotate(grad, groups, layout) ** 2
            mean = first / mean_scale
            plain = mean / (jnp.sqrt(second / square_scale) + GRAFT_EPS)
            scaled = _rotate(mean, groups, layout) / (jnp.sqrt(rotated / square_scale) + EPS)
            direction = _graft(_rotate(scaled, groups, layout, back=True), plain, layout)
            return jnp.where(started, direction, plain), first, second, rotated

        results = jax.tree_util.tree_map_with_path(
            one, grads, state.eigenvectors, state.first, state.second, state.rotated
        )
        direction, first, second, rotated = jax.tree.transpose(
            jax.tree.structure(grads), jax.tree.structure((0,) * 4), results
        )
        return direction, state._replace(first=first, second=second, rotated=rotated)

    def _layout(self, path: tuple, x: Any) -> Layout:
        return layout_of(path, tuple(x.shape), self.max_preconditioner_dim)


def soap(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    precondition_frequency: int = 30,
    start_preconditioning_step: int = 500,
    max_preconditioner_dim: int = 8192,
) -> optax.GradientTransformation:
    """SOAP with decoupled weight decay, as an ordinary optax transformation.

    Parameters are nested dicts. Below a key "blocks" a leading axis is a batch of parameters, as
    nn.scan stacks them; leaves named "kernel" are seen in PyTorch's order of axes. `update` needs
    the parameters.

    The eigendecompositions are part of its program, which a TPU takes long to compile for axes of
    some hundreds; there, let `make_optimizer` have the hosts do them.
    """
    parts = Soap(
        b1=b1,
        b2=b2,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        max_preconditioner_dim=max_preconditioner_dim,
    )

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        state = parts.observe(grads, state)
        vectors = jax.lax.cond(
            parts.due(state.steps),
            lambda state: parts.refresh(state).eigenvectors,
            lambda state: state.eigenvectors,
            state,
        )
        return parts.precondition(grads, state._replace(eigenvectors=vectors))

    return optax.chain(
        optax.GradientTransformation(parts.init, update),
        scale_and_decay(learning_rate, weight_decay),
    )


def scale_and_decay(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """direction -> -lr (direction + weight_decay * params)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)
    )


def _einsum(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, precision=jax.lax.Precision.HIGHEST)


def _gram(x: jax.Array, batch: int, axis: int) -> jax.Array:
    """x x^T over all axes but one: (*batch, ..., m, ...) -> (*batch, m, m padded)."""
    axis += batch
    letters = string.ascii_lowercase[: x.ndim]
    own = letters[axis]
    wide = pad_axis(x, axis, padded(x.shape[axis]))
    return _einsum(f"{letters},{letters.replace(own, 'Z')}->{letters[:batch]}{own}Z", x, wide)


def _rotate(
    x: jax.Array, groups: list[tuple[jax.Array, ...]], layout: Layout, back: bool = False
) -> jax.Array:
    """Every block into its eigenbasis, or back out of it; of the parameter's shape."""
    blocks = []
    for block, vectors in zip(layout.cut(x), groups, strict=True):
        letters = string.ascii_lowercase[: block.ndim]
        for i, q in enumerate(vectors):
            axis = layout.batch + i
            own, head = letters[axis], letters[: layout.batch]
            out = letters.replace(own, "Z")
            if back:
                block = pad_axis(block, axis, q.shape[-1])
                block = _einsum(f"{letters},{head}Z{own}->{out}", block, q)
            else:
                block = _einsum(f"{letters},{head}{own}Z->{out}", block, q)
                block = jax.lax.slice_in_dim(block, 0, q.shape[-2], axis=axis)
        blocks.append(block)
    return layout.join(blocks)


def _graft(direction: jax.Array, plain: jax.Array, layout: Layout) -> jax.Array:
    """The direction with the norm of the plain one, in every block."""

    def norm(x: jax.Array) -> jax.Array:
        axes = tuple(range(layout.batch, x.ndim))
        return jnp.sqrt((x**2).sum(axis=axes, keepdims=True))

    return layout.join(
        [
            u * (norm(a) / (norm(u) + NORM_EPS))
            for u, a in zip(layout.cut(direction), layout.cut(plain), strict=True)
        ]
    )
