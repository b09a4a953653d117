"""Segmentation and depth have in common: one pass of a frozen encoder, every granularity read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from adaperceiver_jax.evaluate.flops import flops, readout_flops
from adaperceiver_jax.models.adaperceiver import trains_encoder
from adaperceiver_jax.models.config import check_granularities, check_sub_network
from adaperceiver_jax.models.dense import DenseModel
from adaperceiver_jax.models.vit import ViTConfig
from adaperceiver_jax.tasks.objective import Objective
from adaperceiver_jax.train.settings import check_fields
from adaperceiver_jax.train.task import SubNetwork

BACKBONES = ("adaperceiver", "vit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """The model and loss of 'segment' and 'depth'."""

    backbone: str = "adaperceiver"
    """'adaperceiver' (config.model), or 'vit' (config.vit): a baseline."""
    token_granularities: tuple[int, ...] = ()
    """Token counts that are trained; () takes the model's. Beyond its maximum, positions are scaled
    as config.model.rope_scale says."""
    class_token: bool = False
    """A ViT's class token is joined to every patch's features."""
    mlp: bool = False
    """A ViT's tokens pass an MLP before that."""
    head_drop: float = 0.0
    num_classes: int = 150
    """Classes of label maps."""
    head: str = "linear"
    """Head of segmentation: 'linear', or 'segmenter', a mask transformer."""
    decoder_features: int = 768
    """Channels of the mask transformer."""
    decoder_depth: int = 2
    bins: int = 256
    """Bins of depth, from min_depth to config.data.max_depth."""
    min_depth: float = 0.001
    sig_weight: float = 2.0
    """Weight of the scale-invariant loss of depth."""
    gradient_weight: float = 0.5
    """Weight of the gradient loss of depth."""
    warm_up: int = 100
    """Steps in which the scale-invariant loss leaves out its variance."""
    reference_axes: bool = False
    """The gradient loss looks along batch and channel, as the reference's does."""
    eigen_crop: bool = False
    """Depth is evaluated within the Eigen crop."""

    def __post_init__(self) -> None:
        check = functools.partial(check_fields, self, "config.dense")
        check("backbone", BACKBONES.__contains__, f"one of {', '.join(BACKBONES)}")
        check("sig_weight gradient_weight warm_up", lambda x: x >= 0, "at least 0")
        try:
            check_granularities(self.token_granularities)
        except ValueError as error:
            raise ValueError(f"config.dense.{error}") from error
        if self.token_granularities and self.backbone == "vit":
            raise ValueError(
                f"config.dense.token_granularities={self.token_granularities}: a ViT has none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(Objective):
    """Trains a head on the patch features of every granularity: the token loss alone, full width
    and depth."""

    model: DenseModel
    image_size: tuple[int, int]
    """Height and width."""
    settings: DenseSettings = DenseSettings()
    evaluated: tuple[SubNetwork, ...] = ()
    """Sub-networks beside the whole model."""

    def __post_init__(self) -> None:
        c = self.model.config.backbone
        if not isinstance(c, ViTConfig) and not (
            c.token_granularities or self.settings.token_granularities
        ):
            raise ValueError(
                "config.model.token_granularities=(): training reads out at each; name at least one"
            )

    @property
    def granularities(self) -> tuple[int, ...] | None:
        """Token counts that are trained; None: a ViT's only readout."""
        c = self.model.config.backbone
        if isinstance(c, ViTConfig):
            return None
        return self.settings.token_granularities or c.token_granularities

    def read_all(self, params: Any, images: jax.Array, read: Any, key: jax.Array) -> Any:
        """`read` of every granularity's maps, (T, ...)."""
        return self.model.apply(
            {"params": params},
            read,
            images,
            token_granularities=self.granularities,
            train=True,
            rngs={"dropout": key},
            method="map_readouts",
        )

    def maps(self, params: Any, images: jax.Array, sub_network: SubNetwork | None) -> jax.Array:
        """The head's maps of one sub-network, of pixels (B, H, W, C)."""
        normalised = self.images.normalise(images)
        maps: Any = self.model.apply(
            {"params": params}, normalised, *(sub_network or ()), method="maps"
        )
        return maps

    def check_sub_networks(
        self,
        tokens: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> None:
        """ValueError unless the model has all of these; None is not asked for."""
        c = self.model.config.backbone
        if isinstance(c, ViTConfig):
            if tokens or widths or depths:
                raise ValueError(
                    f"tokens={tokens}, widths={widths}, depths={depths}: the backbone is a ViT, "
                    "which has no sub-networks"
                )
            return
        for name, values in (("num_tokens", tokens), ("width", widths), ("depth", depths)):
            for value in values or ():
                check_sub_network(c, **{name: value})

    def sub_networks(self) -> tuple[SubNetwork | None, ...]:
        c = self.model.config.backbone
        if isinstance(c, ViTConfig):
            return (None,)
        whole = (c.max_latent_tokens, c.full_width, c.depth)
        return (whole, *(s for s in self.evaluated if s != whole))

    def train_flops(self, trained: Any) -> float:
        """The encoder's forward, its backward (twice that) where it is trained, both of the rest
        at every granularity."""
        config, size = self.model.config, self.image_size
        backbone = trained.get("backbone", {})
        if self.granularities is None:
            cost = flops(config, image_size=size)
            return (3 if backbone else 1) * cost.encoder + 3 * cost.head
        most = self.granularities[-1]
        encoder = flops(
            config, most, image_size=size, token_granularities=self.granularities
        ).encoder
        times = 3 if trains_encoder(backbone) else 1
        return times * encoder + 3 * readout_flops(config, self.granularities, size)
