"""Networks that choose an image's tokens, width and depth: from its patches, or from what a cheap
sub-network predicts."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from adaperceiver_jax.models.config import check_field
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import LayerNorm, Linear, activation

LEAST = -20.0
"""Log-probabilities below it are as good as it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Number of choices per axis."""

    token_choices: int
    width_choices: int = 1
    depth_choices: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(self, field.name, lambda x: x >= 1, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(Choices):
    """The choices, and the size of the patches that the network looks at."""

    embed_dim: int
    num_patches: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeekConfig(Choices):
    """The choices, the classes of the prediction that the network looks at, its hidden units."""

    num_classes: int
    hidden: int = 64


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


class PeekNetwork(nn.Module):
    """A small MLP on log-probabilities, one linear head an axis.

    The sub-network it looks at runs anyway where the smallest budget is chosen, and says more of
    how hard an image is than its patches do, at a hundredth of a PolicyNetwork's cost.
    """

    config: PeekConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.fc1 = nn.Dense(c.hidden, dtype=self.dtype)
        self.fc2 = nn.Dense(c.hidden, dtype=self.dtype)
        self.head_tokens = nn.Dense(c.token_choices)
        self.head_mat_dim = nn.Dense(c.width_choices)
        self.head_depth = nn.Dense(c.depth_choices)

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        return jax.ShapeDtypeStruct((1, self.config.num_classes), jnp.float32)

    def __call__(self, log_probs: jax.Array) -> PolicyOutput:
        """log_probs (B, classes), of a sub-network."""
        c = self.config
        if log_probs.ndim != 2 or log_probs.shape[1] != c.num_classes:
            raise ValueError(f"log_probs of shape {log_probs.shape}: must be (B, {c.num_classes})")
        x = jnp.maximum(log_probs.astype(jnp.float32), LEAST) / 4  # about unit size
        x = activation("gelu", self.fc1(x))
        x = activation("gelu", self.fc2(x))
        return PolicyOutput(self.head_tokens(x), self.head_mat_dim(x), self.head_depth(x))
