"""Writing latents into output tokens, once or for many readouts at a time.

A readout writes the first t latents of some depth. Training reads every granularity and every
depth out of one pass; two forms keep that nearly free:

- many output tokens (features, dense): keys and values are made once for all granularities;
- one output token: its query is a parameter, the same for every sample, so the query, the
  rotation of a key's position, the key projection and what is linear of the latents' norm fold
  into one vector per head and latent, and the value projection waits until after the weighted
  mean. Per sample a readout then costs 4 N H D instead of 4 N D^2 operations.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from adaperceiver_jax.models.attention import CrossAttentionHead, drop_weights
from adaperceiver_jax.models.rope import Rope, unrotate


@struct.dataclass
class FoldedQuery:
    """One output token's query and the latents' norm, folded through key and value projections.

    A norm's mean, scale and bias are linear, so they fold too; of it only the division by the
    deviation is left for each latent: the score of latent n for head h is
    z[n] . keys[n, h] / deviation(z[n]) + offset[n, h].
    """

    keys: jax.Array
    """(N, H, D)"""
    offset: jax.Array
    """(N, H)"""
    values: jax.Array
    """(H, D, d)"""
    value_offset: jax.Array
    """(H, d)"""


class WriteHead(CrossAttentionHead):
    """o + CrossAttention(o, z): RoPE on the keys only, by the latents' positions."""

    def __call__(
        self,
        outputs: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """outputs (B, M, D) with their q, and k, v of the latents -> written outputs (B, M, D).

        mask (N,): which latents are read, all when None.
        """
        return outputs + self.cattn(q, k, v, mask, train)

    def queries(self, outputs: jax.Array) -> jax.Array:
        """(B, M, D) -> (B, M, H, d)."""
        return self.cattn.queries(self.snk_norm(outputs))

    def keys_values(self, z: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
        """Latents (B, N, D) -> keys and values (B, N, H, d)."""
        return self.cattn.keys_values(self.src_norm(z), rope)

    def read_each(
        self, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, train: bool = False
    ) -> jax.Array:
        """Reads keys and values (L, B, N, H, d) by queries (B, M, H, d), of each l those
        visible (L, N): (L, B, M, H, d), to be projected.

        Scores are not kept for the backward pass.
        """
        attention = self.cattn
        key = attention.weight_key(train)
        keys = None if key is None else jax.random.split(key, len(k))

        @jax.checkpoint
        def read(_: None, each: Any) -> tuple[None, jax.Array]:
            return None, attention.attend(q, *each)

        return jax.lax.scan(read, None, (k, v, visible, keys))[1]

    def fold(self, output: jax.Array, rope: Rope) -> FoldedQuery:
        """Folds the query of the one output token (D,) for N latents."""
        attention, norm = self.cattn, self.src_norm
        q = attention.queries(self.snk_norm(output))  # (H, d)
        q = q.astype(jnp.float32) * q.shape[-1] ** -0.5
        turned = unrotate(jnp.broadcast_to(q, (len(rope.cos), *q.shape)), rope)  # (N, H, d)
        kernel = attention.heads(attention.k.kernel)  # (D, H, d)
        keys = jnp.einsum(
            "nhd,chd->nhc",
            turned.astype(self.dtype),
            kernel.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        offset = jnp.einsum("nhc,c->nh", keys, norm.bias)
        if attention.k.bias is not None:
            offset += jnp.einsum("nhd,hd->nh", turned, attention.heads(attention.k.bias))
        keys = norm.fold(keys, axis=-1)
        kernel = attention.heads(attention.v.kernel).swapaxes(0, 1)  # (H, D, d)
        value_offset = jnp.einsum(
            "hcd,c->hd", kernel, norm.bias, preferred_element_type=jnp.float32
        )
        if attention.v.bias is not None:
            value_offset += attention.heads(attention.v.bias)
        values = norm.fold(kernel, axis=1)
        return FoldedQuery(keys, offset, values, value_offset)

    def write_one(
        self,
        output: jax.Array,
        folded: FoldedQuery,
        z: jax.Array,
        visible: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Writes the one output token (D,) R times from latents z (..., N, D).

        visible: bool, broadcasts to (..., R, N), which latents each readout sees; None is one
        readout of all. -> (..., R, D).
        """
        attention = self.cattn
        centred = self.src_norm.centre(z)
        factor = self.src_norm.inverse_deviation(centred)  # (..., N, 1)
        if jnp.dtype(self.dtype) != jnp.float32:  # the folds cancel a mean, but not its rounding
            z = centred
        z = z.astype(self.dtype)
        # z is the left factor: of the right one, XLA on CPUs makes a copy, channel by channel.
        scores = jnp.einsum("...nc,nhc->n...h", z, folded.keys, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, 0, -2) * factor + folded.offset  # (..., N, H)
        scores = scores.swapaxes(-1, -2)[..., None, :, :]  # (..., 1, H, N)
        where = None if visible is None else visible[..., None, :]
        weights = jax.nn.softmax(scores, where=where)
        key = attention.weight_key(train)
        if key is not None:
            weights = drop_weights(weights, attention.attn_drop, key)
        scaled = (weights * factor[..., None, None, :, 0]).astype(self.dtype)
        pooled = jnp.einsum("...rhn,...nc->...rhc", scaled, z)
        values = jnp.einsum("...rhc,hcd->h...rd", pooled, folded.values)
        total = weights.sum(axis=-1, keepdims=True)  # 1, but under dropout
        values = jnp.moveaxis(values, 0, -2) + (total * folded.value_offset).astype(self.dtype)
        return output + attention.project(values, train)
