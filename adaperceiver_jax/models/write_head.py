"""Writing latents into output tokens, once or for many readouts at a time.

A readout writes the first t latents of some depth. Training reads every granularity and every
depth out of one pass; two forms keep that nearly free:

- many output tokens (dense): keys and values are made once for all granularities;
- one output token: its query is a parameter, the same for every sample, so the query, the
  rotation of a key's position and the key projection fold into one vector per head and latent,
  and the value projection waits until after the weighted mean. Per sample a readout then costs
  4 N H D instead of 4 N D^2 operations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from adaperceiver_jax.models.attention import CrossAttentionHead, drop_weights, softmax
from adaperceiver_jax.models.rope import Rope, unrotate


@struct.dataclass
class FoldedQuery:
    """One output token's query, folded through the key projection."""

    keys: jax.Array
    """(H, N, D): the score of latent n for head h is keys[h, n] . src_norm(z[n]) + offset[h, n]."""
    offset: jax.Array
    """(H, N)"""


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

    def fold(self, output: jax.Array, rope: Rope) -> FoldedQuery:
        """Folds the query of the one output token (D,) for N latents."""
        attention = self.cattn
        q = attention.queries(self.snk_norm(output))  # (H, d)
        q = q.astype(jnp.float32) * q.shape[-1] ** -0.5
        num_tokens = rope.cos.shape[0]
        turned = unrotate(jnp.broadcast_to(q, (num_tokens, *q.shape)), rope)  # (N, H, d)
        kernel = attention.heads(attention.k.kernel)  # (D, H, d)
        keys = jnp.einsum("nhd,chd->hnc", turned.astype(self.dtype), kernel.astype(self.dtype))
        if attention.k.bias is None:
            return FoldedQuery(keys, jnp.zeros(keys.shape[:2]))
        bias = attention.heads(attention.k.bias)
        return FoldedQuery(keys, jnp.einsum("nhd,hd->hn", turned, bias))

    def scores(self, folded: FoldedQuery, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents (..., N, D) -> scores (..., H, N) in float32, and the normalised latents."""
        source = self.src_norm(z)
        scores = jnp.einsum(
            "...nc,hnc->...hn", source, folded.keys, preferred_element_type=jnp.float32
        )
        return scores + folded.offset, source

    def write_one(
        self,
        output: jax.Array,
        scores: jax.Array,
        source: jax.Array,
        visible: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Writes the one output token (D,) R times: scores (..., H, N), source (..., N, D).

        visible: bool, broadcasts to (..., R, N), which latents each readout sees; None is one
        readout of all. -> (..., R, D).
        """
        attention = self.cattn
        scores = scores[..., None, :, :]
        weights = softmax(scores, None if visible is None else visible[..., None, :])
        key = attention.weight_key(train)
        if key is not None:
            weights = drop_weights(weights, attention.attn_drop, key)
        pooled = jnp.einsum("...rhn,...nc->...rhc", weights.astype(self.dtype), source)
        kernel = attention.heads(attention.v.kernel)  # (D, H, d)
        values = jnp.einsum("...rhc,chd->...rhd", pooled, kernel.astype(self.dtype))
        if attention.v.bias is not None:
            total = weights.sum(axis=-1, keepdims=True)  # 1, but under dropout
            values = values + (total * attention.heads(attention.v.bias)).astype(self.dtype)
        return output + attention.project(values, train)
