"""The Vision Transformer as timm builds it: the teacher, and the paper's baselines."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from adaperceiver_jax.models.adapters import Patchify, resample_positions
from adaperceiver_jax.models.attention import attend_to_all
from adaperceiver_jax.models.config import check_field, check_images
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import KEEP_PRODUCTS, LayerNorm, LayerScale, Linear, normal_02


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and variant of a ViT; the defaults are ViT-B/16."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int | None = 1000
    """None leaves the head out."""
    class_token: bool = True
    reg_tokens: int = 0
    global_pool: str = "token"
    """'token' scores the class token, 'avg' the mean of the patches."""
    fc_norm: bool | None = None
    """Norm after pooling instead of before it; None does so for 'avg' alone."""
    no_embed_class: bool = False
    """Positions are added to the patches only, as in DeiT-3; not to class token and registers."""
    qkv_bias: bool = True
    pre_norm: bool = False
    """CLIP's LayerNorm right after the embedding; the patch convolution then has no bias."""
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    """1e-5 in CLIP's models."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "image_size", "patch_size", "in_channels"):
            check_field(self, name, lambda x: x >= 1, "at least 1")
        check_field(self, "reg_tokens", lambda x: x >= 0, "at least 0")
        check_field(self, "num_classes", lambda x: x is None or x >= 1, "None or at least 1")
        check_field(self, "global_pool", ("token", "avg").__contains__, "'token' or 'avg'")
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool='token' with class_token=False: use global_pool='avg'")
        heads, patch = self.num_heads, self.patch_size
        check_field(self, "embed_dim", lambda x: x % heads == 0, f"a multiple of num_heads={heads}")
        check_field(
            self, "image_size", lambda x: x % patch == 0, f"a multiple of patch_size={patch}"
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token first, then registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def norm_after_pooling(self) -> bool:
        """True if the last norm is `fc_norm`, of the pooled vector, not `norm`, of all tokens."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm


@struct.dataclass
class ViTOutput:
    """Predictions of a ViT."""

    logits: jax.Array | None
    """(B, classes)"""
    features: jax.Array
    """(B, patches, D), after the final norm where the model has one before pooling"""
    prefix: jax.Array
    """(B, class token and registers, D), likewise"""


class ViTAttention(nn.Module):
    """Multi-head self-attention with one fused qkv projection."""

    features: int
    num_heads: int
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        qkv = Linear(self.features, 3 * self.features, self.qkv_bias, self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, self.num_heads, -1), -3, 0)
        y = attend_to_all(q, k, v).reshape(x.shape)
        return Linear(self.features, self.features, dtype=self.dtype, name="proj")(y)


class ViTBlock(nn.Module):
    """Pre-norm transformer block; the stream stays float32."""

    config: ViTConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """(B, N, D) -> (B, N, D)."""
        c = self.config

        def norm(name: str) -> LayerNorm:
            return LayerNorm(c.embed_dim, c.norm_epsilon, self.dtype, name=name)

        def scaled(x: jax.Array, name: str) -> jax.Array:
            x = x.astype(jnp.float32)
            return LayerScale(c.embed_dim, c.layer_scale, name=name)(x) if c.layer_scale else x

        attention = ViTAttention(c.embed_dim, c.num_heads, c.qkv_bias, self.dtype, name="attn")
        hidden = int(c.embed_dim * c.mlp_ratio)
        mlp = FFN(c.embed_dim, hidden, c.embed_dim, dtype=self.dtype, name="mlp")
        x = x + scaled(attention(norm("norm1")(x)), "ls1")
        return x + scaled(mlp(norm("norm2")(x)), "ls2"), None


class ViT(nn.Module):
    """Images to logits and patch features; `config` says which ViT."""

    config: ViTConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    unroll: int = 1

    def setup(self) -> None:
        c = self.config
        self.patch_embed = Patchify(
            c.in_channels, c.patch_size, c.embed_dim, not c.pre_norm, self.dtype
        )
        tiny, dim = nn.initializers.normal(1e-6), c.embed_dim
        if c.class_token:
            self.cls_token = self.param("cls_token", tiny, (1, 1, dim))
        if c.reg_tokens:
            self.reg_token = self.param("reg_token", tiny, (1, c.reg_tokens, dim))
        positions = (c.image_size // c.patch_size) ** 2
        if not c.no_embed_class:
            positions += c.num_prefix_tokens
        self.pos_embed = self.param("pos_embed", normal_02, (1, positions, dim))
        if c.pre_norm:
            self.norm_pre = LayerNorm(dim, c.norm_epsilon, self.dtype)
        block = ViTBlock
        if self.remat:
            block = nn.remat(block, prevent_cse=False, policy=KEEP_PRODUCTS)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.depth,
            unroll=self.unroll,
        )(c, self.dtype)
        final = LayerNorm(dim, c.norm_epsilon, jnp.float32)
        if c.norm_after_pooling:
            self.fc_norm = final
        else:
            self.norm = final
        if c.num_classes is not None:
            self.head = Linear(dim, c.num_classes, dtype=self.dtype, out_dtype=jnp.float32)

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        c = self.config
        return jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.in_channels), jnp.float32)

    def __call__(self, images: jax.Array) -> ViTOutput:
        """Images (B, H, W, C); any size that the patch divides, positions resampled."""
        c = self.config
        check_images(images, c.patch_size, c.in_channels)
        batch, height, width, _ = images.shape
        first = [self.cls_token] if c.class_token else []
        first += [self.reg_token] if c.reg_tokens else []
        prefix = jnp.concatenate(first, axis=1) if first else jnp.zeros((1, 0, c.embed_dim))
        count = 0 if c.no_embed_class else c.num_prefix_tokens
        of_prefix, of_patches = jnp.split(self.pos_embed, [count], axis=1)
        if count:
            prefix = prefix + of_prefix
        grid = (height // c.patch_size, width // c.patch_size)
        x = self.patch_embed(images).astype(jnp.float32) + resample_positions(of_patches, *grid)
        x = jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape[1:])), x], axis=1)
        if c.pre_norm:
            x = self.norm_pre(x).astype(jnp.float32)
        x, _ = self.blocks(x, None)
        if not c.norm_after_pooling:
            x = self.norm(x)
        prefix, features = jnp.split(x, [c.num_prefix_tokens], axis=1)
        logits = None
        if c.num_classes is not None:
            pooled = prefix[:, 0] if c.global_pool == "token" else features.mean(axis=1)
            logits = self.head(self.fc_norm(pooled) if c.norm_after_pooling else pooled)
        return ViTOutput(logits, features, prefix)
