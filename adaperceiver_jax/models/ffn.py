"""The blocks' FFN, whose hidden units are the width: cut for a batch, or used in part by a sample.

In training samples differ in width. The units that a sample does not use are masked; on one CPU
most are not even computed: of the units between two of the model's widths, a loop computes those of
one sample after another, of the samples that use them. Accelerators want all samples at once, and
where samples are split over devices each round would have to fetch one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from adaperceiver_jax.models.layers import PRODUCT, Linear, activation, affine
from adaperceiver_jax.models.platform import on_one_cpu

Weights = tuple[jax.Array, jax.Array, jax.Array]
"""fc1's kernel (D, n) and bias (n,), fc2's kernel (n, D): of some hidden units."""
LEAST_PRODUCT = 2**22
"""Multiply-adds from which a sample's product is worth a round of a loop of its own."""


class FFN(nn.Module):
    """fc2(act(fc1(x))), or SwiGLU's fc2(act(gate(x)) * fc1(x)), cut to a number of hidden units."""

    in_features: int
    hidden: int
    features: int
    kind: str = "mlp"
    act: str = "gelu"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    out_dtype: DTypeLike | None = None
    bounds: tuple[int, ...] = ()
    """The hidden units of the widths that samples have, in any order. Samples may use any others:
    of those between two bounds then more are computed than they use."""

    def setup(self) -> None:
        self.fc1 = Linear(self.in_features, self.hidden, dtype=self.dtype)
        if self.kind == "swiglu":
            self.gate = Linear(self.in_features, self.hidden, dtype=self.dtype)
        self.fc2 = Linear(self.hidden, self.features, dtype=self.dtype, out_dtype=self.out_dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        x: jax.Array,
        hidden: int | None = None,
        hidden_per_sample: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """x (B, N, in_features) -> (B, N, features).

        `hidden` cuts the weights for the whole batch; `hidden_per_sample` (B,) masks, so that
        every sample of one compiled step may have its own width.
        """
        cuts = []
        if hidden_per_sample is not None and hidden is None and on_one_cpu():
            cuts = self._cuts(x.shape[1] * self.in_features, train)
        if cuts:
            fc1: Any = self.fc1
            fc2: Any = self.fc2
            weights = fc1.kernel, fc1.bias, fc2.kernel
            types = self.dtype, self.out_dtype or self.dtype
            return ffn_of_used_units(
                x, weights, fc2.bias, jnp.asarray(hidden_per_sample), cuts, self.act, *types
            )
        y = self.fc1(x, columns=hidden)
        if self.kind == "swiglu":
            y = activation(self.act, self.gate(x, columns=hidden)) * y
        else:
            y = activation(self.act, y)
        if hidden_per_sample is not None:
            y = _masked(y, hidden_per_sample[:, None, None])
        y = self.drop(y, deterministic=not train)
        return self.drop(self.fc2(y, rows=hidden), deterministic=not train)

    @nn.nowrap
    def _cuts(self, size: int, train: bool) -> list[int]:
        """Where the units are cut into parts that are worth skipping for a sample of this size: at
        some of the bounds, or nowhere. SwiGLU's and dropout's are masked."""
        if self.kind != "mlp" or (train and self.dropout):
            return []
        cuts = sorted({bound for bound in self.bounds if 0 < bound < self.hidden})
        parts = itertools.pairwise([*cuts, self.hidden])
        return [start for start, end in parts if size * (end - start) >= LEAST_PRODUCT]


def ffn_of_used_units(
    x: jax.Array,
    weights: Weights,
    bias: jax.Array,
    used: jax.Array,
    cuts: Sequence[int],
    act: str,
    dtype: DTypeLike,
    out_dtype: DTypeLike,
) -> jax.Array:
    """fc2(act(fc1(x))) of each sample's first `used` (B,) hidden units: x (B, N, D) -> the same.

    Differentiable once, backwards.

    Args:
      weights: of all hidden units.
      bias: of fc2.
      cuts: ascending. Units up to the first are computed of every sample; those from one to the
        next, of the samples that use any of them.
    """
    x = jnp.asarray(x)  # a loop takes samples from no NumPy array
    kernel1, bias1, kernel2 = weights
    whole, *parts = zip(
        jnp.split(kernel1, cuts, axis=1),
        jnp.split(bias1, cuts),
        jnp.split(kernel2, cuts),
        strict=True,
    )
    before = checkpoint_name(affine(x, whole[0], whole[1], dtype, dtype), PRODUCT)
    after = _masked(activation(act, before), used[:, None, None])
    y = affine(after, whole[2], bias, dtype, out_dtype)
    for start, part in zip(cuts, parts, strict=True):
        y = _add_part(x, y, part, used, start, act, dtype)
    return checkpoint_name(y, PRODUCT)


def _masked(y: jax.Array, used: jax.Array, start: int = 0) -> jax.Array:
    """y (..., n) of the units from `start` on, 0 for those that are not used."""
    return jnp.where(jnp.arange(start, start + y.shape[-1]) < used, y, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _add_part(
    x: jax.Array,
    y: jax.Array,
    weights: Weights,
    used: jax.Array,
    start: int,
    act: str,
    dtype: DTypeLike,
) -> jax.Array:
    """y (B, N, D) and what a part of the units, from `start` on, adds to it."""
    return _add_part_forward(x, y, weights, used, start, act, dtype)[0]


def _fc1(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A sample's (N, D) -> (N, n)."""
    return affine(x, kernel, bias, dtype, dtype)


def _fc2(
    before: jax.Array,
    kernel: jax.Array,
    used: jax.Array,
    start: int,
    act: str,
    out_dtype: DTypeLike,
) -> jax.Array:
    """A sample's (N, n), before the activation -> (N, D)."""
    after = _masked(activation(act, before), used, start)
    return affine(after, kernel, None, before.dtype, out_dtype)


def _users(used: jax.Array, start: int) -> tuple[jax.Array, jax.Array]:
    """How many samples use units from `start` on, and all samples' indices (B,), theirs first."""
    return (used > start).sum(), jnp.argsort(used <= start)


def _add_part_forward(x, y, weights, used, start, act, dtype):
    kernel1, bias1, kernel2 = weights
    count, order = _users(used, start)

    def one_more(i: jax.Array, state: tuple) -> tuple:
        y, kept = state
        sample = order[i]
        before = _fc1(x[sample], kernel1, bias1, dtype)
        more = _fc2(before, kernel2, used[sample], start, act, y.dtype)
        return y.at[sample].add(more), kept.at[i].set(before)

    kept = jnp.zeros((*x.shape[:2], kernel1.shape[1]), dtype)
    y, kept = jax.lax.fori_loop(0, count, one_more, (y, kept))
    return y, (x, weights, used, checkpoint_name(kept, PRODUCT))


def _add_part_backward(start, act, dtype, residuals, grad):
    x, weights, used, kept = residuals
    kernel1, bias1, kernel2 = weights
    count, order = _users(used, start)

    def one_more(i: jax.Array, state: tuple) -> tuple:
        to_x, to_weights = state
        sample = order[i]
        fc1 = functools.partial(_fc1, dtype=dtype)
        fc2 = functools.partial(_fc2, used=used[sample], start=start, act=act, out_dtype=grad.dtype)
        to_before, to_kernel2 = jax.vjp(fc2, kept[i], kernel2)[1](grad[sample])
        to_sample, *to_fc1 = jax.vjp(fc1, x[sample], kernel1, bias1)[1](to_before)
        to_weights = jax.tree.map(jnp.add, to_weights, (*to_fc1, to_kernel2))
        return to_x.at[sample].add(to_sample), to_weights

    zeros = jax.tree.map(jnp.zeros_like, (x, weights))
    to_x, to_weights = jax.lax.fori_loop(0, count, one_more, zeros)
    return to_x, grad, to_weights, None


_add_part.defvjp(_add_part_forward, _add_part_backward)
