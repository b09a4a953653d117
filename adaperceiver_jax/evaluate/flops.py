"""How many floating-point operations a forward takes, part by part.

Only matrix products count, a multiply-add as 2; norms, activations and softmax add about 1%.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from adaperceiver_jax.models.attention import IMPLEMENTATIONS, attention_spans
from adaperceiver_jax.models.config import (
    AdaPerceiverConfig,
    check_granularities,
    check_image_shape,
    check_sub_network,
)
from adaperceiver_jax.models.dense import DenseConfig, DepthConfig, SegmentationConfig
from adaperceiver_jax.models.dense_heads import UPSAMPLE
from adaperceiver_jax.models.masks import make_mask
from adaperceiver_jax.models.policy import PeekConfig, PolicyConfig
from adaperceiver_jax.models.vit import ViTConfig

HEAD = ("write", "head", "exit_tests", "mlp", "task_head")
"""Parts behind the encoder."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one image."""

    by_part: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_part.values())

    @property
    def encoder(self) -> float:
        """Up to the last block: what no readout and no task needs a second time."""
        return self.total - self.head

    @property
    def head(self) -> float:
        """Writing, the output adapter and what stands on it."""
        return sum(self.by_part.get(part, 0) for part in HEAD)


def flops(
    config: AdaPerceiverConfig | DenseConfig | ViTConfig | PolicyConfig | PeekConfig,
    num_tokens: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    token_granularities: Sequence[int] | None = None,
    attention: str = "cut",
    batch_size: int = 1,
) -> Flops:
    """FLOPs of one image through the sub-network (num_tokens, width, depth); None is all.

    Args:
      config: of any of the package's models.
      image_size: side, or (height, width); None is the config's.
      token_granularities: as in the call, instead of the config's.
      attention: the model's `attention`: what 'cut' leaves out, 'masked' computes.
      batch_size: images that share the cost of folding the class token's query.

    The parts: patch_embed, embed_ffn, read, projections, attention and ffn (of the blocks),
    write, head; of a dense model also task_head, its resizing included. A ViT has patch_embed,
    projections, attention, ffn and head, under a dense head mlp and task_head instead of head;
    a policy network mixer and head, a peeking network head.
    """
    if attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention={attention!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    c: Any = getattr(config, "backbone", config)
    if not isinstance(c, AdaPerceiverConfig) and (num_tokens, width, depth) != (None, None, None):
        raise ValueError(f"num_tokens, width, depth: a {type(c).__name__} has no sub-networks")
    if isinstance(c, PolicyConfig | PeekConfig):
        return Flops(_policy(c))
    grid = _grid(c, image_size)
    patches = math.prod(grid)
    if isinstance(c, ViTConfig):
        parts = _vit(c, patches)
        if isinstance(config, DenseConfig):
            del parts["head"]  # an image's logits, which the dense head does not ask for
            tokens = patches + config.class_token
            parts["mlp"] = 4 * tokens * c.embed_dim**2 if config.mlp else 0
    else:
        check_sub_network(c, num_tokens, width, depth)
        n = num_tokens or c.max_latent_tokens
        granularities = c.token_granularities
        if token_granularities is not None:
            granularities = check_granularities(token_granularities)
        spans = attention_spans(make_mask(c.mask, n, granularities), attention) or [(0, n)]
        pairs = sum((end - first) * end for first, end in spans)
        hidden = c.hidden_units(width or c.full_width)
        parts = _adaperceiver(c, patches, n, hidden, depth or c.depth, pairs, batch_size)
    if isinstance(config, DenseConfig):
        parts["task_head"] = _task_head(config, *grid)
    return Flops(parts)


def exit_flops(
    config: AdaPerceiverConfig,
    num_tokens: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    attention: str = "cut",
    batch_size: int = 1,
) -> Flops:
    """FLOPs of one image that was tested after every block and left after `depth` of them.

    Arguments and parts as in `flops`. The last test is the answer, in write and head; the part
    exit_tests is those before it.
    """
    check_sub_network(config, num_tokens, width, depth)
    test = exit_test_flops(config, num_tokens)
    logits = config.replace(output_feat_dim=None)  # a test writes no features
    how: Any = dict(attention=attention, batch_size=batch_size)
    once = flops(logits, num_tokens, width, depth, image_size, **how)
    return Flops({**once.by_part, "exit_tests": ((depth or config.depth) - 1) * test})


def exit_test_flops(config: AdaPerceiverConfig, num_tokens: int | None = None) -> float:
    """FLOPs of one readout of one image's latents as logits, with the query already folded."""
    c = config
    if c.num_classes is None:
        raise ValueError("num_classes=None: an exit test needs a model with class logits")
    n = num_tokens or c.max_latent_tokens
    return _write_one(c, n) + _adapter(c, c.num_classes, c.use_output_ffn)


def _grid(
    config: AdaPerceiverConfig | ViTConfig, image_size: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Patches down and across."""
    size = config.image_size if image_size is None else image_size
    height, width = size if isinstance(size, Sequence) else (size, size)
    check_image_shape((1, height, width, config.in_channels), config.patch_size, config.in_channels)
    return height // config.patch_size, width // config.patch_size


def _adaperceiver(
    c: AdaPerceiverConfig,
    patches: int,
    n: int,
    hidden: int,
    depth: int,
    pairs: int,
    batch_size: int,
) -> dict[str, float]:
    """n: latents; hidden: units of a block's FFN; pairs: of latents that see each other."""
    d = c.embed_dim
    channels = c.in_channels
    if c.fourier_bands is not None:
        channels += 2 * (2 * c.fourier_bands + 1)
    write = head = 0.0
    if c.num_classes is not None:
        write += (2 * d * d + 2 * n * d * d) / batch_size  # query, folded through the keys
        write += _write_one(c, n)
        head += _adapter(c, c.num_classes, c.use_output_ffn)
    if c.output_feat_dim is not None:
        write += 6 * patches * d * d + 4 * n * d * d + 4 * patches * n * d
        use_ffn = c.use_output_ffn or c.num_classes is not None
        head += patches * _adapter(c, c.output_feat_dim, use_ffn)
    return {
        "patch_embed": 2 * patches * c.patch_size**2 * channels * d,
        "embed_ffn": patches * _ffn(c, c.ffn_hidden, d) if c.use_embed_ffn else 0,
        # one query for all latents, keys and values of the patches, the products, proj
        "read": 2 * d * d / batch_size + 4 * patches * d * d + 4 * n * patches * d + 2 * n * d * d,
        "projections": depth * 8 * n * d * d,
        "attention": depth * 4 * pairs * d,
        "ffn": depth * n * _ffn(c, hidden, d),
        "write": write,
        "head": head,
    }


def _write_one(c: AdaPerceiverConfig, n: float) -> float:
    """The one output token: scores and mean, value projection and proj."""
    return 4 * c.num_heads * n * c.embed_dim + 4 * c.embed_dim**2


def _adapter(c: AdaPerceiverConfig, features: int, use_ffn: bool) -> float:
    return _ffn(c, c.ffn_hidden, features) if use_ffn else 2 * c.embed_dim * features


def _ffn(c: AdaPerceiverConfig, hidden: int, features: int) -> float:
    """One token through fc1 (and gate), then fc2 to `features`."""
    inputs = 2 if c.ffn_layer == "swiglu" else 1
    return 2 * hidden * (inputs * c.embed_dim + features)


def readout_flops(
    config: SegmentationConfig | DepthConfig,
    granularities: Sequence[int],
    image_size: int | tuple[int, int] | None = None,
) -> float:
    """FLOPs of one image behind the encoder, read out at every granularity of one pass.

    Output tokens, their queries, keys and values are made once.
    """
    c = config.backbone
    assert isinstance(c, AdaPerceiverConfig)
    grid_height, grid_width = _grid(c, image_size)
    patches, most, d = grid_height * grid_width, granularities[-1], c.embed_dim
    each = [flops(config, t, image_size=image_size).head for t in granularities]
    once = 4 * patches * d * d
    again = once * len(granularities) + 4 * d * d * sum(granularities)
    return sum(each) - again + once + 4 * d * d * most


def once_for_all_readout_flops(
    config: AdaPerceiverConfig, granularities: Sequence[int], depths: bool = True
) -> float:
    """FLOPs of one image behind the encoder, read out at every granularity of one pass and, with
    `depths`, after every block at a granularity drawn for it (here: their mean).

    Output tokens and queries are made once, keys and values once for every block that is read.
    The folds of the class token, once a batch, are left out.
    """
    c, d = config, config.embed_dim
    counts = [float(t) for t in granularities]
    blocks = 1
    if depths:
        counts += [sum(granularities) / len(granularities)] * c.depth
        blocks = c.depth
    total = 0.0
    if c.num_classes is not None:
        adapter = _adapter(c, c.num_classes, c.use_output_ffn)
        total += sum(_write_one(c, t) + adapter for t in counts)
    if c.output_feat_dim is not None:
        patches = math.prod(_grid(c, None))
        adapter = _adapter(c, c.output_feat_dim, c.use_output_ffn or c.num_classes is not None)
        total += 4 * patches * d * d + blocks * 4 * granularities[-1] * d * d
        total += sum(patches * (4 * t * d + 2 * d * d + adapter) for t in counts)
    return total


def _task_head(config: DenseConfig, height: int, width: int) -> float:
    """Head and bilinear resizing over a grid of patches."""
    c = config.backbone
    full = (height * c.patch_size, width * c.patch_size)
    if isinstance(config, SegmentationConfig):
        resize = _taps((height, width), full, config.num_classes)
        if config.head not in HEAD_FLOPS:
            raise ValueError(
                f"head={config.head!r}: its FLOPs are not known; add them to HEAD_FLOPS of "
                "evaluate/flops.py"
            )
        return HEAD_FLOPS[config.head](config, height * width) + resize
    assert isinstance(config, DepthConfig)
    fine = (UPSAMPLE * height, UPSAMPLE * width)
    conv = 2 * fine[0] * fine[1] * 9 * config.features * config.bins
    resize = _taps((height, width), fine, config.features)
    if c.patch_size % UPSAMPLE:
        return conv + resize + _resize(fine, full, 1)
    return conv + resize + _taps(fine, full, 1)


def _mask_transformer(c: SegmentationConfig, patches: int) -> float:
    d, tokens = c.decoder_features, patches + c.num_classes
    blocks = c.decoder_depth * (24 * tokens * d * d + 4 * tokens * tokens * d)
    return (
        2 * patches * c.features * d + blocks + 2 * tokens * d * d + 2 * patches * d * c.num_classes
    )


HEAD_FLOPS: dict[str, Callable[[SegmentationConfig, int], float]] = {
    "linear": lambda c, patches: 2 * patches * c.features * c.num_classes,
    "segmenter": _mask_transformer,
}
"""FLOPs of one image's patches under each of SEGMENTATION_HEADS."""


def _taps(old: tuple[int, int], new: tuple[int, int], channels: int) -> float:
    """By a whole factor: three multiply-adds, less one addition, for each place, an axis."""
    return 5 * channels * (old[0] * new[1] + new[0] * new[1])


def _resize(old: tuple[int, int], new: tuple[int, int], channels: int) -> float:
    """Two products with a matrix of weights, one an axis, the cheaper order first."""
    rows_first = new[0] * old[1] * (old[0] + new[1])
    columns_first = old[0] * new[1] * (old[1] + new[0])
    return 2 * channels * min(rows_first, columns_first)


def _policy(c: PolicyConfig | PeekConfig) -> dict[str, float]:
    choices = c.token_choices + c.width_choices + c.depth_choices
    if isinstance(c, PeekConfig):
        return {"head": 2 * c.hidden * (c.num_classes + c.hidden + choices)}
    d, n = c.embed_dim, c.num_patches
    return {
        "mixer": 2 * (4 * d * n * (d // 2) + 16 * n * d * d),
        "head": 4 * d * d + 2 * d * choices,
    }


def _vit(c: ViTConfig, patches: int) -> dict[str, float]:
    d, n = c.embed_dim, patches + c.num_prefix_tokens
    return {
        "patch_embed": 2 * patches * c.patch_size**2 * c.in_channels * d,
        "projections": c.depth * 8 * n * d * d,
        "attention": c.depth * 4 * n * n * d,
        "ffn": c.depth * 4 * n * d * int(d * c.mlp_ratio),
        "head": 2 * d * (c.num_classes or 0),
    }
