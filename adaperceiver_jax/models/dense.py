"""Dense prediction: patch features of an AdaPerceiver, or of a ViT, under a segmentation or depth
head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike, DTypeLike

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_field
from adaperceiver_jax.models.dense_heads import (
    HEAD_DIM,
    DepthHead,
    MaskTransformer,
    SegmentationHead,
)
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.outputs import Encoded
from adaperceiver_jax.models.upsample import resize_bilinear
from adaperceiver_jax.models.vit import ViT, ViTConfig

T = TypeVar("T")
MOST_CLASSES = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Settings that segmentation and depth models share."""

    backbone: AdaPerceiverConfig | ViTConfig
    class_token: bool = False
    """Joins a ViT's class token to every patch's features."""
    mlp: bool = False
    """Puts an MLP of a ViT's width over all its tokens, before the class token is joined."""
    head_drop: float = 0.0

    def __post_init__(self) -> None:
        b = self.backbone
        if isinstance(b, ViTConfig):
            if self.class_token and not b.class_token:
                raise ValueError("class_token=True: the backbone, a ViT, has none")
            if b.norm_after_pooling:
                raise ValueError(
                    "backbone: a ViT whose last norm comes after pooling gives patches that are "
                    "not normalised; take one with fc_norm=False"
                )
        else:
            if b.output_feat_dim is None or b.num_classes is not None:
                raise ValueError(
                    f"backbone with num_classes={b.num_classes}, output_feat_dim="
                    f"{b.output_feat_dim}: a dense model needs num_classes=None and an "
                    "output_feat_dim"
                )
            for name in ("class_token", "mlp"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}=True: is for a ViT; an AdaPerceiver has no class token and its "
                        "own output adapter"
                    )
        check_field(self, "head_drop", lambda x: 0 <= x < 1, "in [0, 1)")

    @property
    def features(self) -> int:
        """Channels that the head looks at."""
        if isinstance(self.backbone, ViTConfig):
            return self.backbone.embed_dim * (1 + self.class_token)
        assert self.backbone.output_feat_dim is not None  # __post_init__ makes sure of it
        return self.backbone.output_feat_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig(DenseConfig):
    """A dense model and the classes of its label map."""

    num_classes: int
    head: str = "linear"
    """'linear', or 'segmenter': a mask transformer."""
    decoder_features: int = 768
    """Channels of the mask transformer."""
    decoder_depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise ValueError(
                f"num_classes={self.num_classes}: must be in 1..{MOST_CLASSES}; in label maps "
                f"{MOST_CLASSES} is what does not count"
            )
        heads = f"one of {', '.join(SEGMENTATION_HEADS)}"
        check_field(self, "head", SEGMENTATION_HEADS.__contains__, heads)
        for name in ("decoder_features", "decoder_depth"):
            check_field(self, name, lambda x: x >= 1, "at least 1")
        if self.decoder_features > HEAD_DIM and self.decoder_features % HEAD_DIM:
            raise ValueError(
                f"decoder_features={self.decoder_features}: must be a multiple of {HEAD_DIM}, one "
                "attention head's channels, or less than that"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig(DenseConfig):
    """A dense model and the bins of its depth, metres from min_depth to max_depth."""

    bins: int = 256
    min_depth: float = 0.001
    max_depth: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "bins", lambda x: x >= 2, "at least 2")
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth={self.min_depth}, max_depth={self.max_depth}: must be ascending and "
                "not negative"
            )


@struct.dataclass
class SegmentationOutput:
    """Predictions of one sub-network, or with a leading axis T of every granularity."""

    logits: jax.Array
    """(B, H, W, classes)"""


@struct.dataclass
class DepthOutput:
    """Predictions of one sub-network, or with a leading axis T of every granularity."""

    depth: jax.Array
    """(B, H, W), metres"""


SEGMENTATION_HEADS: dict[str, Callable[[SegmentationConfig, DTypeLike, bool], nn.Module]] = {
    "linear": lambda c, dtype, remat: SegmentationHead(c.num_classes, c.head_drop, dtype),
    "segmenter": lambda c, dtype, remat: MaskTransformer(
        c.num_classes, c.decoder_features, c.decoder_depth, c.head_drop, dtype, remat
    ),
}
"""Makes a head that takes feature maps (B, h, w, F) and `train`, and gives logits (B, h, w,
classes): (config, dtype of matmuls, whether activations are computed again)."""


class DenseModel(nn.Module):
    """Base of segmentation and depth: backbone, feature map, every granularity of one pass.

    Maps are what the head gives: (B, h, w, classes), a cell a patch, or depth (B, 4h, 4w, 1).
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    attention: str = "cut"
    remat: bool = False
    """Compute activations again in the backward pass: of blocks what their linear layers did not
    give, and all of each readout."""
    unroll: int = 1

    def setup(self) -> None:
        c: DenseConfig = self.config
        self.backbone: Any
        if isinstance(c.backbone, ViTConfig):
            self.backbone = ViT(c.backbone, self.dtype, self.remat, self.unroll)
            if c.mlp:
                dim = c.backbone.embed_dim
                self.mlp = FFN(dim, dim, dim, dtype=self.dtype, out_dtype=jnp.float32)
        else:
            self.backbone = AdaPerceiver(
                c.backbone, self.dtype, self.attention, self.remat, self.unroll
            )

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        c = self.config.backbone
        return jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.in_channels), jnp.float32)

    def output(self, maps: jax.Array) -> Any:
        """Maps at the images' size, also with leading axes, as what the model predicts."""
        raise NotImplementedError

    def __call__(
        self,
        images: jax.Array,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> Any:
        """Images (B, H, W, C) through one sub-network; arguments as AdaPerceiver's."""
        maps = self.maps(images, num_tokens, width, depth, token_granularities, train)
        return self.output(resize_bilinear(maps, *images.shape[1:3]))

    def readouts(
        self,
        images: jax.Array,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> Any:
        """Predictions of every granularity (T) of one pass, full width and depth."""

        def read(maps: jax.Array) -> jax.Array:
            return resize_bilinear(maps, *images.shape[1:3])

        return self.output(self.map_readouts(read, images, token_granularities, train))

    def maps(
        self,
        images: jax.Array,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The head's maps of one sub-network; a ViT has none but the whole."""
        if isinstance(self.config.backbone, ViTConfig):
            given = (num_tokens, width, depth, token_granularities)
            if given != (None,) * 4:
                raise ValueError(
                    f"num_tokens, width, depth, token_granularities={given}: the backbone is a "
                    "ViT, which has no sub-networks"
                )
            return self._head_of(images.shape, self._vit_features(images), train)
        out: Any = self.backbone(images, num_tokens, width, depth, token_granularities, train)
        return self._head_of(images.shape, out.features, train)

    def map_readouts(
        self,
        read: Callable[[jax.Array], T],
        images: jax.Array,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> T:
        """`read` of each granularity's maps, full width and depth, from one pass.

        Args:
          read: takes maps, gives arrays; they come back stacked, (T, ...). With `remat` nothing
            between the latents and its result is kept for the backward pass.
          token_granularities: T counts instead of the config's; a ViT has but one readout.
        """
        c = self.config.backbone
        if isinstance(c, ViTConfig):
            results = [read(self.maps(images, None, None, None, token_granularities, train))]
        else:
            if token_granularities is None:
                token_granularities = c.token_granularities
            encoded = self.encode(images, None, token_granularities, train)
            results = self.read_encoded(read, images.shape, encoded, token_granularities, train)
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    def encode(
        self,
        images: jax.Array,
        widths: ArrayLike | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
        keep_latents: bool = False,
    ) -> Encoded:
        """An AdaPerceiver's pass over the largest granularity, before anything is written."""
        return self.backbone.encode(images, widths, token_granularities, train, keep_latents)

    def read_encoded(
        self,
        read: Callable[[jax.Array], T],
        image_shape: tuple[int, ...],
        encoded: Encoded,
        granularities: Sequence[int],
        train: bool = False,
    ) -> list[T]:
        """`read` of the maps of each granularity of one pass; keys and values are made once."""
        outputs, queries = self.backbone.output_tokens(encoded.patches)
        keys, values = self.backbone.keys_values(encoded.z, encoded.rope)

        def one(module: DenseModel, *tokens: jax.Array) -> T:
            features = module.backbone.write_features(*tokens, train=train)
            return read(module._head_of(image_shape, features, train))

        one = nn.remat(one, prevent_cse=True) if self.remat else one
        return [one(self, outputs, queries, keys[:, :t], values[:, :t]) for t in granularities]

    def _head_of(self, image_shape: tuple[int, ...], features: jax.Array, train: bool) -> jax.Array:
        """Features (B, patches, F) -> maps."""
        patch = self.config.backbone.patch_size
        grid = (image_shape[1] // patch, image_shape[2] // patch)
        return self.head(features.reshape(features.shape[0], *grid, -1), train)

    def _vit_features(self, images: jax.Array) -> jax.Array:
        c: DenseConfig = self.config
        out = self.backbone(images)
        features, token = out.features, out.prefix[:, :1]
        if c.mlp:
            features, token = self.mlp(features), self.mlp(token) if c.class_token else token
        if not c.class_token:
            return features
        return jnp.concatenate([jnp.broadcast_to(token, features.shape), features], axis=-1)


class SegmentationModel(DenseModel):
    """Semantic segmentation: images to a SegmentationOutput."""

    config: SegmentationConfig

    def setup(self) -> None:
        super().setup()
        self.head = SEGMENTATION_HEADS[self.config.head](self.config, self.dtype, self.remat)

    def output(self, maps: jax.Array) -> SegmentationOutput:
        return SegmentationOutput(maps)


class DepthModel(DenseModel):
    """Depth from one image: images to a DepthOutput.

    The bins' expectation lies within [min_depth, max_depth] by itself; no clamp is needed.
    """

    config: DepthConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.head = DepthHead(c.bins, c.min_depth, c.max_depth, c.head_drop, self.dtype)

    def output(self, maps: jax.Array) -> DepthOutput:
        return DepthOutput(maps[..., 0])
