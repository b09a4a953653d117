"""The config of an AdaPerceiver: sizes, variants, trained sub-networks; and checks of input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

VARIANTS = {
    "block_mask": ("block", "causal", "none"),
    "attn_layer": ("flex", "full"),
    "ffn_layer": ("mlp", "swiglu"),
    "act_layer": ("gelu", "silu"),
    "norm_layer": ("layernorm",),
    "process_token_init": ("learned", "norm_randn"),
}
"""The allowed values of the fields that are names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaPerceiverConfig:
    """Everything that decides the parameters and the numbers of one AdaPerceiver.

    The defaults are the paper's model (143.7 M parameters). `num_classes` alone makes a
    classifier, `output_feat_dim` alone a dense model (one feature vector a patch), both together
    the distillation model that predicts its teacher's logits and features.
    """

    embed_dim: int = 832
    num_heads: int = 13
    depth: int = 21
    """Number of blocks."""
    max_latent_tokens: int = 256
    """Number of latents in training, and when a call names none."""
    token_granularities: tuple[int, ...] = (32, 64, 96, 128, 192, 256)
    """Trained token counts: the bounds of the block mask."""
    widths: tuple[int, ...] = (416, 624, 832)
    """Trained widths."""
    max_width: int | None = None
    """Largest width whose hidden units the blocks hold; None is embed_dim. Set by `extract`."""

    ffn_ratio: float = 2.57
    """A width of w uses the first int(w * ffn_ratio) hidden units of a block's FFN."""
    ffn_layer: str = "mlp"
    act_layer: str = "gelu"
    norm_layer: str = "layernorm"
    qkv_bias: bool = True
    proj_bias: bool = True
    layer_scale: float | None = 1e-5
    """Initial value of LayerScale; None (or 0) leaves it out."""

    block_mask: str = "block"
    attn_layer: str = "flex"
    """The reference's attention class; 'full' ignores the mask there, and so it does here."""
    rope_theta: float = 10000
    rope_scale: float | None = None
    """Divides every RoPE frequency. None is the reference's rule: the run's token count over
    max_latent_tokens where it is larger, else 1; a number keeps training and inference alike."""
    process_token_init: str = "learned"

    image_size: int = 224
    """Side of the square images that the position table was made for."""
    patch_size: int = 14
    in_channels: int = 3
    use_embed_ffn: bool = True
    fourier_bands: int | None = None
    """Bands of the Fourier maps appended to the image before the patch convolution."""

    num_classes: int | None = 1000
    output_feat_dim: int | None = None
    use_output_ffn: bool = False
    """LayerNorm and FFN instead of a linear layer as output adapter. The feature adapter of a
    distillation model always has them."""

    attn_drop: float = 0.0
    proj_drop: float = 0.0
    drop_path: float = 0.0
    """Stochastic depth of the last block; the rate grows linearly from 0 at the first."""
    head_drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("token_granularities", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        sizes = ("embed_dim", "num_heads", "depth", "max_latent_tokens", "image_size")
        for name in (*sizes, "patch_size", "in_channels"):
            check_field(
                self, name, lambda x: isinstance(x, int) and x >= 1, "an integer, at least 1"
            )
        for name in ("num_classes", "output_feat_dim", "fourier_bands"):
            check_field(self, name, lambda x: x is None or x >= 1, "None or at least 1")
        if self.num_classes is None and self.output_feat_dim is None:
            raise ValueError(
                "num_classes=None, output_feat_dim=None: give at least one of them, else the "
                "model has no output"
            )
        for name, allowed in VARIANTS.items():
            check_field(self, name, allowed.__contains__, f"one of {', '.join(allowed)}")
        for name in ("attn_drop", "proj_drop", "drop_path", "head_drop"):
            check_field(self, name, lambda x: 0 <= x < 1, "in [0, 1)")
        pairs = 2 * self.num_heads
        why = f"a multiple of 2 * num_heads = {pairs}, since RoPE turns pairs"
        check_field(self, "embed_dim", lambda x: x % pairs == 0, why)
        patch = self.patch_size
        check_field(
            self, "image_size", lambda x: x % patch == 0, f"a multiple of patch_size={patch}"
        )
        most = self.embed_dim
        within = f"None or in 1..{most} (embed_dim)"
        check_field(self, "max_width", lambda x: x is None or 1 <= x <= most, within)
        for name in ("ffn_ratio", "rope_theta", "rope_scale"):
            check_field(self, name, lambda x: x is None or x > 0, "above 0")
        check_granularities(self.token_granularities)
        for width in self.widths:
            check_width(width, self)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def grid_size(self) -> int:
        """Patches a side at `image_size`."""
        return self.image_size // self.patch_size

    @property
    def full_width(self) -> int:
        """The largest width the model can run."""
        return self.max_width or self.embed_dim

    @property
    def ffn_hidden(self) -> int:
        """Hidden units of the embed and output FFNs, which no width cuts."""
        return self.hidden_units(self.embed_dim)

    @property
    def attention(self) -> dict[str, Any]:
        """The fields that all attentions of the model have in common."""
        names = ("num_heads", "qkv_bias", "proj_bias", "attn_drop", "proj_drop")
        return {"features": self.embed_dim, **{name: getattr(self, name) for name in names}}

    @property
    def mask(self) -> str:
        """The mask in force: attn_layer 'full' attends to everything, as in the reference."""
        return "none" if self.attn_layer == "full" else self.block_mask

    def hidden_units(self, width: int) -> int:
        """Hidden units of a block's FFN at this width."""
        return int(width * self.ffn_ratio)

    def replace(self, **changes) -> AdaPerceiverConfig:
        """A copy with these fields changed, checked anew."""
        return dataclasses.replace(self, **changes)


def check_field(config: Any, name: str, good: Callable[[Any], bool], allowed: str) -> None:
    """Raises ValueError unless the config's field is good."""
    value = getattr(config, name)
    if not good(value):
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def check_granularities(granularities: Sequence[int]) -> tuple[int, ...]:
    """The counts as a tuple; ValueError unless they are ascending and at least 1."""
    if isinstance(granularities, np.ndarray):
        granularities = granularities.tolist()
    if not isinstance(granularities, Sequence) or not all(
        isinstance(g, int | np.integer) for g in granularities
    ):
        raise ValueError(f"token_granularities={granularities!r}: must be a sequence of integers")
    if any(g < 1 for g in granularities) or list(granularities) != sorted(set(granularities)):
        raise ValueError(
            f"token_granularities={tuple(granularities)}: must be ascending token counts, each at "
            "least 1 and named once"
        )
    return tuple(int(g) for g in granularities)


def check_width(width: int, config: AdaPerceiverConfig) -> None:
    """Raises ValueError unless the model holds this width."""
    if not 1 <= width <= config.full_width:
        raise ValueError(
            f"width={width}: must be in 1..{config.full_width} (trained: "
            f"{', '.join(map(str, config.widths)) or 'none'})"
        )


def check_sub_network(
    config: AdaPerceiverConfig,
    num_tokens: int | None = None,
    width: int | None = None,
    depth: int | None = None,
) -> None:
    """Raises ValueError unless (num_tokens, width, depth) names a sub-network; None is all."""
    for name, value in (("num_tokens", num_tokens), ("width", width), ("depth", depth)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not whole:
            raise ValueError(
                f"{name}={value}: must be an integer (or None for all); it shapes the program, "
                "so under jax.jit make it a static argument"
            )
    if num_tokens is not None and num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: must be at least 1")
    if width is not None:
        check_width(width, config)
    if depth is not None and not 1 <= depth <= config.depth:
        raise ValueError(f"depth={depth}: must be in 1..{config.depth}")


def check_images(images: Any, patch_size: int, in_channels: int) -> None:
    """Raises ValueError unless these are images (B, H, W, C), floating point, whole patches."""
    if not hasattr(images, "shape"):
        raise ValueError(f"images of type {type(images).__name__}: must be an array (B, H, W, C)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images of dtype {images.dtype}: must be floating point, normalised; for pixels "
            "0 to 255: (images / 255 - mean) / std"
        )
    check_image_shape(images.shape, patch_size, in_channels)


def check_image_shape(shape: tuple[int, ...], patch_size: int, in_channels: int) -> None:
    """Raises ValueError unless this is the shape of images (B, H, W, C) that patches divide."""
    if len(shape) != 4 or shape[-1] != in_channels:
        raise ValueError(
            f"images of shape {tuple(shape)}: must be (B, H, W, {in_channels}), channels last"
        )
    height, width = shape[1:3]
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        near = (max(1, round(size / patch_size)) * patch_size for size in (height, width))
        raise ValueError(
            f"images of {height} x {width}: height and width must be multiples of "
            f"patch_size={patch_size}; resize or crop to e.g. {' x '.join(map(str, near))}"
        )
