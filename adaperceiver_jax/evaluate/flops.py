"""How many floating-point operations a forward takes, part by part.

Only matrix products count, a multiply-add as 2; norms, activations and softmax add about 1%.
"""

from __future__ import annotations

import dataclasses

from adaperceiver_jax.models.attention import IMPLEMENTATIONS
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_images, check_sub_network
from adaperceiver_jax.models.masks import make_mask
from adaperceiver_jax.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one image."""

    by_part: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_part.values())


def flops(
    config: AdaPerceiverConfig | ViTConfig,
    num_tokens: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    attention: str = "cut",
    batch_size: int = 1,
) -> Flops:
    """FLOPs of one image through the sub-network (num_tokens, width, depth); None is all.

    Args:
      image_size: side, or (height, width); None is the config's.
      attention: the model's `attention`: what 'cut' leaves out, 'masked' computes.
      batch_size: the class token's query is folded once a batch; its cost is shared by so many.

    The parts: patch_embed, embed_ffn, read, projections, attention and ffn (of the blocks),
    write, head. A ViT has patch_embed, projections, attention, ffn and head, and no sub-networks.
    """
    if attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention={attention!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    size = config.image_size if image_size is None else image_size
    height, image_width = (size, size) if isinstance(size, int) else size
    check_images(
        (1, height, image_width, config.in_channels), config.patch_size, config.in_channels
    )
    patches = (height // config.patch_size) * (image_width // config.patch_size)
    if isinstance(config, ViTConfig):
        if (num_tokens, width, depth) != (None, None, None):
            raise ValueError("num_tokens, width, depth: a ViT has no sub-networks")
        return Flops(_vit(config, patches))
    check_sub_network(config, num_tokens, width, depth)
    n = num_tokens or config.max_latent_tokens
    hidden = config.hidden_units(width or config.full_width)
    parts = _encoder(config, patches, n, hidden, depth or config.depth, attention, batch_size)
    return Flops({**parts, **_outputs(config, patches, n, batch_size)})


def _encoder(
    c: AdaPerceiverConfig,
    patches: int,
    n: int,
    hidden: int,
    depth: int,
    attention: str,
    batch_size: int,
) -> dict[str, float]:
    d = c.embed_dim
    channels = c.in_channels
    if c.fourier_bands is not None:
        channels += 2 * (2 * c.fourier_bands + 1)
    mask = make_mask(c.mask, n, c.token_granularities)
    cut = mask.kind == "block" and attention == "cut"
    pairs = sum((end - first) * end for first, end in mask.spans()) if cut else n * n
    return {
        "patch_embed": 2 * patches * c.patch_size**2 * channels * d,
        "embed_ffn": patches * _ffn(c, c.ffn_hidden, d) if c.use_embed_ffn else 0,
        # one query for all latents, keys and values of the patches, the products, proj
        "read": 2 * d * d / batch_size + 4 * patches * d * d + 4 * n * patches * d + 2 * n * d * d,
        "projections": depth * 8 * n * d * d,
        "attention": depth * 4 * pairs * d,
        "ffn": depth * n * _ffn(c, hidden, d),
    }


def _outputs(c: AdaPerceiverConfig, patches: int, n: int, batch_size: int) -> dict[str, float]:
    d = c.embed_dim
    write = head = 0.0
    if c.num_classes is not None:
        write += (2 * d * d + 2 * n * d * d) / batch_size  # query, folded through the keys
        write += 4 * c.num_heads * n * d + 4 * d * d  # scores and mean, value projection and proj
        head += _adapter(c, c.num_classes, c.use_output_ffn)
    if c.output_feat_dim is not None:
        write += 6 * patches * d * d + 4 * n * d * d + 4 * patches * n * d
        use_ffn = c.use_output_ffn or c.num_classes is not None
        head += patches * _adapter(c, c.output_feat_dim, use_ffn)
    return {"write": write, "head": head}


def _adapter(c: AdaPerceiverConfig, features: int, use_ffn: bool) -> float:
    return _ffn(c, c.ffn_hidden, features) if use_ffn else 2 * c.embed_dim * features


def _ffn(c: AdaPerceiverConfig, hidden: int, features: int) -> float:
    """One token through fc1 (and gate), then fc2 to `features`."""
    inputs = 2 if c.ffn_layer == "swiglu" else 1
    return 2 * hidden * (inputs * c.embed_dim + features)


def _vit(c: ViTConfig, patches: int) -> dict[str, float]:
    d, n = c.embed_dim, patches + c.num_prefix_tokens
    return {
        "patch_embed": 2 * patches * c.patch_size**2 * c.in_channels * d,
        "projections": c.depth * 8 * n * d * d,
        "attention": c.depth * 4 * n * n * d,
        "ffn": c.depth * 4 * n * d * int(d * c.mlp_ratio),
        "head": 2 * d * (c.num_classes or 0),
    }
