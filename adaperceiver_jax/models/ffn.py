"""The blocks' FFN, whose hidden units are the width: cut for a batch, or used in part by a sample.

Where samples differ in width, as in training, the units that a sample does not use are masked. On
one CPU alone most of them are not computed: its loops take one sample after another, as many as use
a part of the units. Accelerators want all samples at once, and of samples that are split over
devices a loop would have to fetch each.
"""

from __future__ import annotations

import functools
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
    """The hidden units of the widths that samples have, ascending: what lies between two is skipped
    for samples that use none of it. Others than these are right too, and skip less."""

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
        plain = self.kind == "mlp" and not (train and self.dropout)
        if hidden_per_sample is not None and plain and on_one_cpu():
            fc1: Any = self.fc1
            fc2: Any = self.fc2
            return ffn_of_used_units(
                x,
                (fc1.kernel, fc1.bias, fc2.kernel),
                fc2.bias,
                hidden_per_sample,
                sorted({*self.bounds, self.hidden}),
                self.act,
                self.dtype,
                self.out_dtype or self.dtype,
            )
        y = self.fc1(x, columns=hidden)
        if self.kind == "swiglu":
            y = activation(self.act, self.gate(x, columns=hidden)) * y
        else:
            y = activation(self.act, y)
        if hidden_per_sample is not None:
            used = jnp.arange(y.shape[-1]) < hidden_per_sample[:, None, None]
            y = jnp.where(used, y, 0)
        y = self.drop(y, deterministic=not train)
        return self.drop(self.fc2(y, rows=hidden), deterministic=not train)


def ffn_of_used_units(
    x: jax.Array,
    weights: Weights,
    bias: jax.Array,
    used: jax.Array,
    bounds: Sequence[int],
    act: str,
    dtype: DTypeLike,
    out_dtype: DTypeLike,
) -> jax.Array:
    """fc2(act(fc1(x))) of each sample's first `used` (B,) hidden units: x (B, N, D) -> the same.

    Args:
      bias: of fc2.
      bounds: ascending, the last one all hidden units. Up to the first, units are computed for
        every sample; between two, for those alone that use some of them.
    """
    x, used = jnp.asarray(x), jnp.asarray(used)  # a loop takes samples from no NumPy array
    kernel1, bias1, kernel2 = weights
    *cuts, _ = bounds
    parts = zip(
        (0, *cuts),
        jnp.split(kernel1, cuts, axis=1),
        jnp.split(bias1, cuts),
        jnp.split(kernel2, cuts),
        strict=True,
    )
    _, *first = next(parts)
    before = checkpoint_name(affine(x, first[0], first[1], dtype, dtype), PRODUCT)
    after = _masked(before, used[:, None, None], 0, act)
    y = affine(after, first[2], bias, dtype, out_dtype)
    for start, *part in parts:
        y = _add(x, y, tuple(part), used, start, act, dtype)
    return checkpoint_name(y, PRODUCT)


def _masked(before: jax.Array, used: jax.Array, start: int, act: str) -> jax.Array:
    """What fc2 is given of units from `start` on: (..., n) -> (..., n)."""
    units = start + jnp.arange(before.shape[-1])
    return jnp.where(units < used, activation(act, before), 0)


def _second(
    before: jax.Array, kernel: jax.Array, used: jax.Array, start: int, act: str, out_dtype: Any
) -> jax.Array:
    """One sample's (N, n) -> (N, D)."""
    after = _masked(before, used, start, act)
    return affine(after, kernel, None, before.dtype, out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _add(
    x: jax.Array,
    y: jax.Array,
    weights: Weights,
    used: jax.Array,
    start: int,
    act: str,
    dtype: DTypeLike,
) -> jax.Array:
    """y (B, N, D), with what the units from `start` on add for the samples that use any."""
    return _add_forward(x, y, weights, used, start, act, dtype)[0]


def _add_forward(x, y, weights, used, start, act, dtype):
    kernel1, bias1, kernel2 = weights
    order, count = _users(used, start)

    def add(i: jax.Array, so_far: tuple) -> tuple:
        y, kept = so_far
        sample = order[i]
        before = affine(x[sample], kernel1, bias1, dtype, dtype)
        more = _second(before, kernel2, used[sample], start, act, y.dtype)
        return y.at[sample].add(more), kept.at[i].set(before)

    kept = jnp.zeros((*x.shape[:2], kernel1.shape[1]), dtype)
    y, kept = jax.lax.fori_loop(0, count, add, (y, kept))
    return y, (x, weights, used, checkpoint_name(kept, PRODUCT))


def _add_backward(start, act, dtype, residuals, grad):
    x, weights, used, kept = residuals
    kernel1, bias1, kernel2 = weights
    order, count = _users(used, start)

    def add(i: jax.Array, so_far: tuple) -> tuple:
        to_x, to_weights = so_far
        sample = order[i]

        def second(before: jax.Array, kernel: jax.Array) -> jax.Array:
            return _second(before, kernel, used[sample], start, act, grad.dtype)

        def first(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            return affine(x, kernel, bias, dtype, dtype)

        to_before, to_kernel2 = jax.vjp(second, kept[i], kernel2)[1](grad[sample])
        to_sample, *to_first = jax.vjp(first, x[sample], kernel1, bias1)[1](to_before)
        to_weights = jax.tree.map(jnp.add, to_weights, (*to_first, to_kernel2))
        return to_x.at[sample].add(to_sample), to_weights

    zeros = jax.tree.map(jnp.zeros_like, (x, weights))
    to_x, to_weights = jax.lax.fori_loop(0, count, add, zeros)
    return to_x, grad, to_weights, None


_add.defvjp(_add_forward, _add_backward)


def _users(used: jax.Array, start: int) -> tuple[jax.Array, jax.Array]:
    """The samples' indices (B,), those first that use the most, and how many use units from
    `start` on."""
    return jnp.argsort(-used), (used > start).sum()
