"""Layers where images enter and outputs leave: patch embedding, output tokens and adapters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import LayerNorm, Linear, affine, normal_02, torch_uniform


def fourier_maps(height: int, width: int, bands: int, max_frequency: float) -> jax.Array:
    """(H, W, 2 (2 bands + 1)): per axis sin(pi f x) over the bands, cos(pi f x), then x.

    Rows first, then columns; x runs from -1 to 1 end to end, f from 1 to max_frequency.
    """
    frequencies = np.pi * np.linspace(1.0, max_frequency, bands, dtype=np.float32)
    maps = []
    for axis, size in enumerate((height, width)):
        x = np.linspace(-1.0, 1.0, size, dtype=np.float32)[:, None]
        line = np.concatenate([np.sin(x * frequencies), np.cos(x * frequencies), x], axis=-1)
        # Only the line is a constant of the program; the map is spread out on the device.
        spread = jnp.expand_dims(jnp.asarray(line), 1 - axis)
        maps.append(jnp.broadcast_to(spread, (height, width, line.shape[-1])))
    return jnp.concatenate(maps, axis=-1)


def resample_positions(table: jax.Array, height: int, width: int) -> jax.Array:
    """A position table (1, side^2, D) for another grid (1, height * width, D).

    Bicubic with antialiasing, in float32.
    """
    side = round(table.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table.astype(jnp.float32).reshape(side, side, -1)
    grid = jax.image.resize(grid, (height, width, grid.shape[-1]), "cubic", antialias=True)
    return grid.reshape(1, height * width, -1)


class StridedConv(nn.Module):
    """A convolution whose stride is its size, as one matmul over the patches."""

    in_channels: int
    patch_size: int
    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images (B, H, W, C) -> patches (B, H / p * W / p, D), rows first."""
        p, fan_in = self.patch_size, self.patch_size**2 * self.in_channels
        shape = (p, p, self.in_channels, self.features)
        kernel = self.param("kernel", torch_uniform(fan_in), shape)
        batch, rows, columns = images.shape[0], images.shape[1] // p, images.shape[2] // p
        x = images.astype(self.dtype).reshape(batch, rows, p, columns, p, self.in_channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, fan_in)
        bias = None
        if self.use_bias:
            bias = self.param("bias", torch_uniform(fan_in), (self.features,))
        return affine(x, kernel.reshape(fan_in, -1), bias, self.dtype, self.dtype)


class Patchify(nn.Module):
    """Images to patches; the projection keeps its PyTorch name, `proj`, one level down."""

    in_channels: int
    patch_size: int
    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images (B, H, W, C) -> (B, patches, D)."""
        sizes = (self.in_channels, self.patch_size, self.features)
        return StridedConv(*sizes, self.use_bias, self.dtype, name="proj")(images)


class PatchEmbed(nn.Module):
    """Patches plus positions, then LayerNorm and FFN (no residual) with the embed FFN on."""

    config: AdaPerceiverConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images (B, H, W, C) -> (B, patches, D)."""
        c = self.config
        height, width = images.shape[1:3]
        if c.fourier_bands is not None:
            maps = fourier_maps(height, width, c.fourier_bands, c.image_size / 2)
            maps = jnp.broadcast_to(maps, (images.shape[0], *maps.shape))
            images = jnp.concatenate([images.astype(jnp.float32), maps], axis=-1)
        sizes = (images.shape[-1], c.patch_size, c.embed_dim)
        x = Patchify(*sizes, dtype=self.dtype, name="embed")(images)
        table = self.param("pos_embed", normal_02, (1, c.grid_size**2, c.embed_dim))
        x = x + resample_positions(table, height // c.patch_size, width // c.patch_size)
        if not c.use_embed_ffn:
            return x
        x = LayerNorm(c.embed_dim, dtype=self.dtype, name="norm")(x)
        sizes = (c.embed_dim, c.ffn_hidden, c.embed_dim)
        return FFN(*sizes, c.ffn_layer, c.act_layer, dtype=self.dtype, name="ffn")(x)


class LearnedToken(nn.Module):
    """One learned vector: the latent that is broadcast, or the classifier's output token."""

    shape: tuple[int, ...]
    stddev: float = 1e-6

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("token", nn.initializers.normal(self.stddev), self.shape)


class ProjectedPatches(nn.Module):
    """Output tokens of a dense model: one a patch, a linear layer of the patches."""

    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.proj = Linear(self.features, self.features, dtype=self.dtype, out_dtype=jnp.float32)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """(B, patches, D) -> (B, patches, D), float32: the start of the output stream."""
        return self.proj(patches)


class OutputAdapter(nn.Module):
    """From output tokens to what is asked for: a linear layer, or LayerNorm and an FFN."""

    config: AdaPerceiverConfig
    features: int
    use_ffn: bool
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.drop = nn.Dropout(c.head_drop)
        self.ffn: FFN | Linear
        if self.use_ffn:
            self.norm = LayerNorm(c.embed_dim, dtype=self.dtype)
            sizes = (c.embed_dim, c.ffn_hidden, self.features)
            self.ffn = FFN(
                *sizes, c.ffn_layer, c.act_layer, dtype=self.dtype, out_dtype=jnp.float32
            )
        else:
            self.ffn = Linear(c.embed_dim, self.features, dtype=self.dtype, out_dtype=jnp.float32)

    def __call__(self, outputs: jax.Array, train: bool = False) -> jax.Array:
        """(..., D) -> (..., features), float32."""
        x = self.norm(outputs) if self.use_ffn else outputs
        x = self.drop(x, deterministic=not train)
        return self.ffn(x)
