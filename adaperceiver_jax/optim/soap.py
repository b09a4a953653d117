"""SOAP: Adam in the eigenbasis of Shampoo's factors, with the step length of plain Adam.

For a gradient G with k axes, at step n = 1, 2, ...:

    F_i = b2 F_i + (1 - b2) G G^T             over all axes but i             `observe`
    Q_i = eigenvectors of F_i / (1 - b2^n)    only where `due`                `refresh`
    v   = b2 v + (1 - b2) (Q^T G Q)^2         g, m: second and first moment   `precondition`
    a   = mean / (sqrt(g) + 1e-8)             Adam's direction, moments unbiased
    u   = Q (Q^T mean Q / (sqrt(v) + 1e-12)) Q^T |a| / |.|                    a before `start`

A parameter below the name "blocks" has a leading axis that counts parameters: each has its own
factors, norms and eigenvectors. `stacks.py` says which axes have factors and how parameters are
cut into blocks. Blocks of one size, of whatever parameter, are one stack, by whose name the state
holds, all in float32: `first`, `second` and `rotated` (m, g, v), (slots, *size); and `factors` and
`eigenvectors`, a tuple of arrays (slots, m, m), one an axis of the blocks.
"""

from __future__ import annotations

import dataclasses
import math
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from adaperceiver_jax.optim.eigenvectors import Factors, Refresh, eigenvectors_in_graph
from adaperceiver_jax.optim.stacks import Stack, Stacks

GRAFT_EPS = 1e-8
EPS = 1e-12
NORM_EPS = 1e-16


class SoapState(NamedTuple):
    """Arrays that SOAP carries across steps; the module says how they are laid out."""

    steps: jax.Array
    """() int32: gradients observed."""
    factors: Factors
    eigenvectors: Factors
    first: dict[str, jax.Array]
    second: dict[str, jax.Array]
    rotated: dict[str, jax.Array]


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
    mesh: Mesh | None = None
    """Devices that share the work; gradients and directions lie as the parameters do."""

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
        stacks = self._stacks(params).all

        def zeros() -> dict[str, jax.Array]:
            return {s.name: jnp.zeros((s.slots, *s.held), jnp.float32) for s in stacks}

        return SoapState(
            steps=jnp.zeros((), jnp.int32),
            factors={s.name: tuple(jnp.zeros((s.slots, m, m)) for m in s.held) for s in stacks},
            eigenvectors={s.name: tuple(_eye(s, i) for i in range(len(s.size))) for s in stacks},
            first=zeros(),
            second=zeros(),
            rotated=zeros(),
        )

    def due(self, step: Any) -> Any:
        """True if step n (from 1; an int, or an array inside a program) has new eigenvectors."""
        start = self.start_preconditioning_step
        late = (step > start) & (step % self.precondition_frequency == 0)
        return (step == start) | late

    def observe(self, grads: Any, state: SoapState) -> SoapState:
        """Counts a step, and its gradients into the factors."""
        dealt = self._stacks(grads).deal(_float32(grads))
        factors = {
            name: tuple(
                self.b2 * factor + (1 - self.b2) * _gram(dealt[name], 1 + axis)
                for axis, factor in enumerate(group)
            )
            for name, group in state.factors.items()
        }
        return state._replace(steps=state.steps + 1, factors=factors)

    def refresh(self, state: SoapState, params: Any) -> SoapState:
        """New eigenvectors, inside a compiled program."""
        scale = unbias(self.b2, state.steps)
        stacks = self._stacks(params).all
        vectors = eigenvectors_in_graph(state.factors, scale, stacks)
        return state._replace(eigenvectors=vectors)

    def begin_refresh(self, state: SoapState, params: Any) -> Refresh:
        """New eigenvectors by LAPACK on the hosts, outside of any compiled program; the result is
        the next state's `eigenvectors`. All processes must call it."""
        stacks = self._stacks(params)
        scale = unbias(self.b2, state.steps)
        return Refresh(state.factors, scale, stacks.all, stacks.owners)

    def precondition(self, grads: Any, state: SoapState) -> tuple[Any, SoapState]:
        """The direction of the step, float32 in the parameters' shapes, and the state after it.

        `observe` must have seen the same gradients.
        """
        stacks = self._stacks(grads)
        mean_scale, square_scale = unbias(self.b1, state.steps), unbias(self.b2, state.steps)
        started = state.steps >= self.start_preconditioning_step
        directions, first, second, rotated = {}, {}, {}, {}
        for name, grad in stacks.deal(_float32(grads)).items():
            vectors = state.eigenvectors[name]
            first[name] = self.b1 * state.first[name] + (1 - self.b1) * grad
            second[name] = self.b2 * state.second[name] + (1 - self.b2) * grad**2
            turned = _rotate(grad, vectors) ** 2
            rotated[name] = self.b2 * state.rotated[name] + (1 - self.b2) * turned
            mean = first[name] / mean_scale
            plain = mean / (jnp.sqrt(second[name] / square_scale) + GRAFT_EPS)
            scaled = _rotate(mean, vectors) / (jnp.sqrt(rotated[name] / square_scale) + EPS)
            direction = _graft(_rotate(scaled, vectors, back=True), plain)
            directions[name] = jnp.where(started, direction, plain)
        state = state._replace(first=first, second=second, rotated=rotated)
        return stacks.collect(directions), state

    def _stacks(self, params: Any) -> Stacks:
        return Stacks(params, self.max_preconditioner_dim, self.mesh)


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
            lambda state: parts.refresh(state, grads).eigenvectors,
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


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _eye(stack: Stack, axis: int) -> jax.Array:
    """(slots, m, m): the identity in every row that there is."""
    m, held = stack.size[axis], stack.held[axis]
    one = np.zeros((held, held), np.float32)
    one[:m, :m] = np.eye(m)
    rows = jnp.arange(stack.slots) < stack.rows
    return jnp.where(rows[:, None, None], one, 0)


def _gram(x: jax.Array, axis: int) -> jax.Array:
    """x x^T over all axes but one: (slots, ..., m, ...) -> (slots, m, m)."""
    letters = string.ascii_lowercase[: x.ndim]
    own = letters[axis]
    return _einsum(f"{letters},{letters.replace(own, 'Z')}->a{own}Z", x, x)


def _rotate(x: jax.Array, vectors: tuple[jax.Array, ...], back: bool = False) -> jax.Array:
    """Every block (slots, m_1, ..., m_k) into its eigenbasis, or back out of it."""
    letters = string.ascii_lowercase[: x.ndim]
    for own, q in zip(letters[1:], vectors, strict=True):
        sides = f"aZ{own}" if back else f"a{own}Z"
        x = _einsum(f"{letters},{sides}->{letters.replace(own, 'Z')}", x, q)
    return x


def _graft(direction: jax.Array, plain: jax.Array) -> jax.Array:
    """The direction with the norm of the plain one, in every block."""

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt((x**2).sum(axis=range(1, x.ndim), keepdims=True))

    return direction * (norm(plain) / (norm(direction) + NORM_EPS))
