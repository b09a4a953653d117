"""The policy network: from an image's patches to a choice of tokens, width and depth."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import LayerNorm, Linear, activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Size of the patches it looks at, and how many choices each axis has."""

    embed_dim: int
    num_patches: int
    token_choices: int
    width_choices: int = 1
    depth_choices: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: must be at least 1")


@struct.dataclass
class PolicyOutput:
    """Unnormalised scores of the choices on every axis."""

    token_logits: jax.Array
    """(B, token choices)"""
    width_logits: jax.Array
    """(B, width choices)"""
    depth_logits: jax.Array
    """(B, depth choices)"""


class MixerBlock(nn.Module):
    """MLP-Mixer: an MLP across tokens (half as wide), then one across channels (4 x)."""

    num_tokens: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        n, d = self.num_tokens, self.features
        y = LayerNorm(d, dtype=self.dtype, name="norm1")(x).swapaxes(1, 2)
        y = FFN(n, d // 2, n, dtype=self.dtype, name="mlp_tokens")(y)
        x = x + y.swapaxes(1, 2)
        y = LayerNorm(d, dtype=self.dtype, name="norm2")(x)
        return x + FFN(d, 4 * d, d, dtype=self.dtype, name="mlp_channels")(y)


class PolicyNetwork(nn.Module):
    """Two mixer blocks, the mean over tokens, a small MLP, one linear head an axis."""

    config: PolicyConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c, d = self.config, self.config.embed_dim
        self.mixer_block = MixerBlock(c.num_patches, d, self.dtype)
        self.mixer_block_2 = MixerBlock(c.num_patches, d, self.dtype)
        self.fuse_0 = LayerNorm(d, 1e-5, self.dtype)
        self.fuse_1 = Linear(d, d, dtype=self.dtype)
        self.fuse_3 = Linear(d, d, dtype=self.dtype)
        self.head_tokens = Linear(d, c.token_choices, use_bias=False)
        self.head_mat_dim = Linear(d, c.width_choices, use_bias=False)
        self.head_depth = Linear(d, c.depth_choices, use_bias=False)

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        c = self.config
        return jax.ShapeDtypeStruct((1, c.num_patches, c.embed_dim), jnp.float32)

    def __call__(self, patches: jax.Array) -> PolicyOutput:
        """patches (B, patches, D), the output of AdaPerceiver's `embed`."""
        c = self.config
        if patches.ndim != 3 or patches.shape[1:] != (c.num_patches, c.embed_dim):
            raise ValueError(
                f"patches of shape {patches.shape}: must be (B, {c.num_patches}, {c.embed_dim})"
            )
        x = self.mixer_block_2(self.mixer_block(patches.astype(jnp.float32))).mean(axis=1)
        x = activation("gelu", self.fuse_1(self.fuse_0(x)))
        x = activation("gelu", self.fuse_3(x))
        return PolicyOutput(self.head_tokens(x), self.head_mat_dim(x), self.head_depth(x))
