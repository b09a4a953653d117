"""Heads on patch features: linear segmentation and depth heads, a mask transformer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adaperceiver_jax.models.layers import LayerNorm, Linear
from adaperceiver_jax.models.upsample import resize_bilinear
from adaperceiver_jax.models.vit import ViTBlock, ViTConfig

UPSAMPLE = 4  # the depth head looks at features four times as fine as the patches
HEAD_DIM = 64  # of the mask transformer's attention


class Conv(nn.Module):
    """A convolution with 'same' padding, kernel LeCun normal, bias 0."""

    features: int
    kernel_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h, w, features), float32."""
        size = self.kernel_size
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (size, size, x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        return y + bias


class SegmentationHead(nn.Module):
    """LayerNorm over channels, dropout of whole maps, 1x1 convolution."""

    num_classes: int
    head_drop: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Feature maps (B, h, w, C) -> logits (B, h, w, classes)."""
        x = LayerNorm(x.shape[-1], dtype=self.dtype, name="bn")(x)
        x = nn.Dropout(self.head_drop, broadcast_dims=(1, 2))(x, deterministic=not train)
        return Conv(self.num_classes, 1, self.dtype, name="conv_seg")(x)


class MaskTransformer(nn.Module):
    """Segmenter's decoder (Strudel et al., 2021): patches and one token a class through blocks.

    A class's score of a patch is the cosine of their two vectors, normalised over the classes.
    """

    num_classes: int
    features: int
    depth: int
    head_drop: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Feature maps (B, h, w, C) -> logits (B, h, w, classes)."""
        batch, height, width, channels = x.shape
        dim = self.features
        # What blocks need to know of a ViT: its sizes.
        sizes = ViTConfig(
            embed_dim=dim, depth=self.depth, num_heads=max(1, dim // HEAD_DIM), num_classes=None
        )
        x = Linear(channels, dim, dtype=self.dtype, out_dtype=jnp.float32, name="proj_dec")(x)
        x = nn.Dropout(self.head_drop, broadcast_dims=(1, 2))(x, deterministic=not train)
        classes = self.param("cls_emb", nn.initializers.normal(0.02), (1, self.num_classes, dim))
        classes = jnp.broadcast_to(classes, (batch, *classes.shape[1:]))
        x = jnp.concatenate([x.reshape(batch, height * width, dim), classes], axis=1)
        blocks = nn.scan(
            nn.remat(ViTBlock, prevent_cse=False) if self.remat else ViTBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = blocks(sizes, self.dtype, name="blocks")(x, None)
        x = LayerNorm(dim, dtype=self.dtype, name="decoder_norm")(x)
        patches, classes = jnp.split(x, [height * width], axis=1)

        def direction(x: jax.Array, name: str) -> jax.Array:
            y = Linear(dim, dim, False, self.dtype, out_dtype=jnp.float32, name=name)(x)
            return y * jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(-1, keepdims=True), 1e-12))

        masks = jnp.einsum(
            "bpc,bkc->bpk",
            direction(patches, "proj_patch"),
            direction(classes, "proj_classes"),
        )
        masks = LayerNorm(self.num_classes, dtype=jnp.float32, name="mask_norm")(masks)
        return masks.reshape(batch, height, width, self.num_classes)


class DepthHead(nn.Module):
    """Upsampling, dropout of whole maps, 3x3 convolution to bins, and their expectation."""

    bins: int
    min_depth: float
    max_depth: float
    head_drop: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Feature maps (B, h, w, C) -> depth (B, 4h, 4w, 1)."""
        x = resize_bilinear(x, UPSAMPLE * x.shape[-3], UPSAMPLE * x.shape[-2])
        x = nn.Dropout(self.head_drop, broadcast_dims=(1, 2))(x, deterministic=not train)
        weights = jax.nn.relu(Conv(self.bins, 3, self.dtype, name="conv_seg")(x)) + 0.1
        weights = weights / weights.sum(axis=-1, keepdims=True)
        bins = jnp.linspace(self.min_depth, self.max_depth, self.bins)
        # a sum, not a matmul, which accelerators would round to fewer bits
        return (weights * bins).sum(axis=-1, keepdims=True)
