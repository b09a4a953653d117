"""The blocks' FFN, whose hidden units are the width: cut for a batch, or masked for each sample."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adaperceiver_jax.models.layers import Linear, activation


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
        y = self.fc1(x, columns=hidden)
        if self.kind == "swiglu":
            y = activation(self.act, self.gate(x, columns=hidden)) * y
        else:
            y = activation(self.act, y)
        if hidden_per_sample is not None:
            chex.assert_shape(hidden_per_sample, (x.shape[0],))
            used = jnp.arange(y.shape[-1]) < hidden_per_sample[:, None, None]
            y = jnp.where(used, y, 0)
        y = self.drop(y, deterministic=not train)
        return self.drop(self.fc2(y, rows=hidden), deterministic=not train)
