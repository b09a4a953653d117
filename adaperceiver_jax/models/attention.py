"""Attention among latents and between streams.

Every module keeps q, k, v and proj as separate linear layers, as the reference does.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from adaperceiver_jax.models.layers import LayerNorm, Linear
from adaperceiver_jax.models.masks import LatentMask
from adaperceiver_jax.models.rope import Rope, apply_rope

IMPLEMENTATIONS = ("cut", "masked")
MOST_CUTS = 16  # each cut is an attention of its own in the program; more compile too long


def attention_spans(mask: LatentMask, implementation: str) -> list[tuple[int, int]] | None:
    """The (first, end) of every unmasked attention of 'cut', None where one attention is run."""
    if implementation == "cut" and mask.kind == "block" and len(mask.blocks) <= MOST_CUTS:
        return mask.spans()
    return None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v for q (B, M, H, d) and k, v (B, N, H, d) -> (B, M, H, d).

    mask: bool, broadcasts to (B, H, M, N), True where visible. With a key the attention weights
    are dropped at rate `dropout`.
    """
    chex.assert_rank([q, k, v], 4)
    chex.assert_equal_shape([k, v])
    if key is None:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    scores = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, where=mask)
    weights = drop_weights(weights, dropout, key).astype(v.dtype)
    return jnp.einsum("bhmn,bnhd->bmhd", weights, v)


@jax.custom_vjp
def attend_to_all(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` without a mask, for q, k and v of one dtype; quicker where nothing is learned.

    Weights are rounded before they are added up and normalised after they were used. So no float32
    scores are left over, which XLA would write to a TPU's large memory (a ViT-H/14's: a fifth of
    its time by the compiler's traffic).
    """
    scores = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(v.dtype)
    total = jnp.moveaxis(weights.astype(jnp.float32).sum(axis=-1), 1, 2)[..., None]
    y = jnp.einsum("bhmn,bnhd->bmhd", weights, v, preferred_element_type=jnp.float32)
    return (y / total).astype(v.dtype)


# Gradients are those of `attend`: here they would be rounded before they cancel.
attend_to_all.defvjp(lambda q, k, v: jax.vjp(attend, q, k, v), lambda pull, g: pull(g))


def drop_weights(weights: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops attention weights at this rate and rescales the rest."""
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0)


class Attention(nn.Module):
    """The four projections of multi-head attention and what is done between them."""

    features: int
    num_heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.q, self.k, self.v = (
            Linear(self.features, self.features, self.qkv_bias, self.dtype) for _ in range(3)
        )
        self.proj = Linear(self.features, self.features, self.proj_bias, self.dtype)
        self.drop = nn.Dropout(self.proj_drop)

    def heads(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., H, D / H)."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | np.ndarray | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The function `attend` under a mask (N,) or (M, N), with the key of `weight_key`."""
        visible = None if mask is None else jnp.atleast_2d(mask)[None, None]
        return attend(q, k, v, visible, self.attn_drop, key)

    def project(self, x: jax.Array, train: bool) -> jax.Array:
        """(..., H, D / H) -> (..., D), through the output projection and its dropout."""
        x = self.proj(x.reshape(*x.shape[:-2], -1))
        return self.drop(x, deterministic=not train)

    def weight_key(self, train: bool) -> jax.Array | None:
        """The key for attention dropout, None where nothing is dropped."""
        return self.make_rng("dropout") if train and self.attn_drop else None


class LatentAttention(Attention):
    """Self-attention among the latents, under their mask, RoPE on queries and keys.

    `implementation` 'cut' attends block by block, each without a mask, so that nothing masked is
    computed; 'masked' attends once under a constant mask, as 'cut' does too beyond MOST_CUTS
    blocks. Same numbers.
    """

    implementation: str = "cut"

    def __call__(
        self, z: jax.Array, rope: Rope, mask: LatentMask, train: bool = False
    ) -> jax.Array:
        """z (B, N, D) -> (B, N, D)."""
        q = apply_rope(self.heads(self.q(z)), rope)
        k = apply_rope(self.heads(self.k(z)), rope)
        v = self.heads(self.v(z))
        spans = attention_spans(mask, self.implementation)
        if spans is None:
            y = self.attend(q, k, v, mask.array(), self.weight_key(train))
        else:
            parts = [
                self.attend(q[:, first:end], k[:, :end], v[:, :end], None, self.weight_key(train))
                for first, end in spans
            ]
            y = jnp.concatenate(parts, axis=1)
        return self.project(y, train)


class CrossAttention(Attention):
    """Attention from a sink (queries) to a source (keys and values)."""

    def queries(self, sink: jax.Array) -> jax.Array:
        """(B, M, D) -> (B, M, H, D / H)."""
        return self.heads(self.q(sink))

    def keys_values(
        self, source: jax.Array, rope: Rope | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(B, N, D) -> keys and values, each (B, N, H, D / H)."""
        k = self.heads(self.k(source))
        return (k if rope is None else apply_rope(k, rope)), self.heads(self.v(source))

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        """q (B, M, H, d), k and v (B, N, H, d), mask (N,) bool or None -> (B, M, D)."""
        return self.project(self.attend(q, k, v, mask, self.weight_key(train)), train)


class CrossAttentionHead(nn.Module):
    """A cross-attention with a norm for either side: what reading and writing have in common."""

    features: int
    num_heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.snk_norm = LayerNorm(self.features, dtype=self.dtype)
        self.src_norm = LayerNorm(self.features, dtype=self.dtype)
        self.cattn = CrossAttention(
            features=self.features,
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            attn_drop=self.attn_drop,
            proj_drop=self.proj_drop,
            dtype=self.dtype,
        )


class ReadHead(CrossAttentionHead):
    """Reads the patches into the latents: RoPE on the queries only."""

    def keys_values(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Patches (B, I, D) -> (B, I, H, d) each, which any number of latents may read."""
        return self.cattn.keys_values(self.src_norm(patches))

    def __call__(
        self,
        token: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        rope: Rope,
        train: bool = False,
    ) -> jax.Array:
        """token (D,), the one learned latent; keys and values; rope of N latents -> (B, N, D).

        All latents start from the same vector, so its query is projected once and only turned
        to each position.
        """
        batch, num_tokens = keys.shape[0], rope.cos.shape[0]
        token = token.astype(jnp.float32)
        q = self.cattn.queries(self.snk_norm(token))  # (H, d)
        q = apply_rope(jnp.broadcast_to(q, (num_tokens, *q.shape)), rope)
        q = jnp.broadcast_to(q, (batch, *q.shape))
        return token + self.cattn(q, keys, values, None, train)
