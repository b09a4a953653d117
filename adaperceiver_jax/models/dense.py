"""Dense prediction: an AdaPerceiver's patch features under a linear segmentation or depth head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.layers import LayerNorm

UPSAMPLE = 4  # the depth head looks at features four times as fine as the patches


def check_backbone(backbone: AdaPerceiverConfig) -> None:
    """Raises ValueError unless this backbone gives features and nothing else."""
    if backbone.output_feat_dim is None or backbone.num_classes is not None:
        raise ValueError(
            f"backbone with num_classes={backbone.num_classes}, "
            f"output_feat_dim={backbone.output_feat_dim}: a dense model needs num_classes=None "
            "and an output_feat_dim"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """A dense AdaPerceiver and the classes of its label map."""

    backbone: AdaPerceiverConfig
    num_classes: int
    head_drop: float = 0.0

    def __post_init__(self) -> None:
        check_backbone(self.backbone)
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """A dense AdaPerceiver and the bins of its depth, metres from min_depth to max_depth."""

    backbone: AdaPerceiverConfig
    bins: int = 256
    min_depth: float = 0.001
    max_depth: float = 10.0
    head_drop: float = 0.0

    def __post_init__(self) -> None:
        check_backbone(self.backbone)
        if self.bins < 2:
            raise ValueError(f"bins={self.bins}: must be at least 2")
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth={self.min_depth}, max_depth={self.max_depth}: must be ascending and "
                "not negative"
            )


@struct.dataclass
class SegmentationOutput:
    """What one sub-network, or with a leading axis T every granularity, predicts."""

    logits: jax.Array
    """(B, H, W, classes)"""


@struct.dataclass
class DepthOutput:
    """What one sub-network, or with a leading axis T every granularity, predicts."""

    depth: jax.Array
    """(B, H, W), metres"""


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """(..., h, w, C) -> (..., height, width, C); half-pixel centres, no antialiasing."""
    shape = (*x.shape[:-3], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


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
        )
        return y.astype(jnp.float32) + bias


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


class DenseModel(nn.Module):
    """What segmentation and depth share: backbone, feature map, every granularity at once."""

    config: SegmentationConfig | DepthConfig
    dtype: DTypeLike = jnp.float32
    attention: str = "cut"
    remat: bool = False
    unroll: int = 1

    def setup(self) -> None:
        self.backbone = AdaPerceiver(
            self.config.backbone, self.dtype, self.attention, self.remat, self.unroll
        )

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        return AdaPerceiver(self.config.backbone).example_inputs()

    def predict(self, images: jax.Array, features: jax.Array | None, train: bool) -> jax.Array:
        """Features (B, patches, F) -> the head's map at the image's own size (B, H, W, C)."""
        assert features is not None  # the config makes sure of it
        _, height, width, _ = images.shape
        patch = self.config.backbone.patch_size
        maps = features.reshape(features.shape[0], height // patch, width // patch, -1)
        return resize_bilinear(self.head(maps, train), height, width)

    def token_maps(
        self, images: jax.Array, token_granularities: Sequence[int] | None, train: bool
    ) -> jax.Array:
        """The map of every granularity (T, B, H, W, C), full width and depth, one pass."""
        out = self.backbone.readouts(images, token_granularities=token_granularities, train=train)
        assert out.token_features is not None
        return jnp.stack([self.predict(images, one, train) for one in out.token_features])


class SegmentationModel(DenseModel):
    """Semantic segmentation."""

    config: SegmentationConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.head = SegmentationHead(c.num_classes, c.head_drop, self.dtype)

    def __call__(
        self,
        images: jax.Array,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> SegmentationOutput:
        """Images (B, H, W, C) through one sub-network; arguments as AdaPerceiver's."""
        out = self.backbone(images, num_tokens, width, depth, token_granularities, train)
        return SegmentationOutput(self.predict(images, out.features, train))

    def readouts(
        self,
        images: jax.Array,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> SegmentationOutput:
        """Logits (T, B, H, W, classes) of every granularity, for training."""
        return SegmentationOutput(self.token_maps(images, token_granularities, train))


class DepthModel(DenseModel):
    """Depth from one image."""

    config: DepthConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.head = DepthHead(c.bins, c.min_depth, c.max_depth, c.head_drop, self.dtype)

    def __call__(
        self,
        images: jax.Array,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> DepthOutput:
        """Images (B, H, W, C) through one sub-network; arguments as AdaPerceiver's.

        The bins' expectation lies within [min_depth, max_depth] by itself; no clamp is needed.
        """
        out = self.backbone(images, num_tokens, width, depth, token_granularities, train)
        return DepthOutput(self.predict(images, out.features, train)[..., 0])

    def readouts(
        self,
        images: jax.Array,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> DepthOutput:
        """Depth (T, B, H, W) of every granularity, for training."""
        return DepthOutput(self.token_maps(images, token_granularities, train)[..., 0])
