"""Predictions of every sub-network for every image, which sweeps, oracles and policies look up."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.masks import blocks_of
from adaperceiver_jax.models.stepper import Stepper

TOP = 5


@struct.dataclass
class Scores:
    """Scores of B images by token count (T), width (W) and depth (L); arrays (T, W, L, B)."""

    right: Any
    """bool: whether the likeliest class is the label."""
    top5: Any
    """bool: whether the label is among the five likeliest classes."""
    confidence: Any
    """float32: the largest probability, which early exit looks at."""
    loss: Any
    """float32: the label's cross-entropy."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Sub-networks: every combination of these."""

    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.tokens), len(self.widths), len(self.depths)

    def sub_networks(self) -> list[tuple[int, int, int]]:
        """(num_tokens, width, depth) in the arrays' order."""
        return [(t, w, l) for t in self.tokens for w in self.widths for l in self.depths]


def make_grid(
    config: AdaPerceiverConfig,
    tokens: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
) -> Grid:
    """The sub-networks asked for, ascending; None is the trained token counts, the trained widths,
    every depth. ValueError for what the model does not have."""
    if config.num_classes is None:
        raise ValueError("num_classes=None: needs a model with classes")
    axes = (
        config.token_granularities if tokens is None else tokens,
        (config.widths or (config.full_width,)) if widths is None else widths,
        range(1, config.depth + 1) if depths is None else depths,
    )
    grid = Grid(*(tuple(sorted({int(x) for x in axis})) for axis in axes))
    for name, axis in (("tokens", grid.tokens), ("widths", grid.widths), ("depths", grid.depths)):
        if not axis:
            raise ValueError(f"{name}=(): name at least one")
    for sub_network in grid.sub_networks():
        check_sub_network(config, *sub_network)
    return grid


Counts = tuple[int, ...]


def passes(config: AdaPerceiverConfig, tokens: Sequence[int]) -> list[tuple[Counts, Counts]]:
    """Fewest passes that give these token counts: (the mask's granularities, the counts) of each.

    Under the block mask one pass over the largest trained count gives all trained ones. Every other
    count takes a pass of its own, and so does each beyond `max_latent_tokens`, where RoPE's
    frequencies follow the count (unless `rope_scale` fixes them).
    """
    trained = config.token_granularities
    most = config.max_latent_tokens if config.rope_scale is None else max(tokens)
    shared = config.mask == "block"
    together = tuple(t for t in tokens if shared and t in trained and t <= most)
    found = [(blocks_of(together[-1], trained), together)] if together else []
    return found + [(blocks_of(t, trained), (t,)) for t in tokens if t not in together]


def score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Logits (..., B, classes) and labels (B,) -> right, top5, confidence, loss, (..., B) each.

    Logits that are not finite are wrong.
    """
    chex.assert_equal_shape_suffix([logits[..., 0], labels], 1)
    logits = logits.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    index = jnp.broadcast_to(labels[:, None].astype(jnp.int32), (*logits.shape[:-1], 1))
    own = jnp.take_along_axis(logits, index, axis=-1)
    finite = jnp.isfinite(log_probs).all(-1)
    right = (logits.argmax(-1) == labels) & finite
    top5 = ((logits > own).sum(-1) < TOP) & finite
    loss = -jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
    return right, top5, jnp.exp(log_probs.max(-1)), loss


def grid_scores(
    model: AdaPerceiver, params: Any, images: jax.Array, labels: jax.Array, grid: Grid
) -> Scores:
    """Scores of every sub-network of a grid on images (B, H, W, C) with labels (B,).

    Images are embedded once, and read once per pass over token counts. The blocks run once per
    pass and width, read out at every depth; no latents are kept beyond the next block.
    """
    embedded: Any = model.apply({"params": params}, images, method="embed_once")
    parts: list[tuple[jax.Array, ...]] = []
    order: list[int] = []
    for granularities, counts in passes(model.config, grid.tokens):
        n, by_width = granularities[-1], []
        visible = jnp.arange(n) < np.array(counts)[:, None]  # (counts, N)
        whole = Stepper(model, params, n, None, granularities)
        start = whole.begin(embedded)
        for width in grid.widths:
            stepper = Stepper(model, params, n, width, granularities, whole.folded)
            by_width.append(_depth_scores(stepper, start, visible, labels, grid.depths[-1]))
        parts.append(jax.tree.map(lambda *x: jnp.stack(x).transpose(2, 0, 1, 3), *by_width))
        order += counts
    rows, depths = np.array([order.index(t) for t in grid.tokens]), np.array(grid.depths) - 1
    joined = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Scores(*(x[rows][:, :, depths] for x in joined))


def _depth_scores(
    stepper: Stepper, z: jax.Array, visible: jax.Array, labels: jax.Array, depth: int
) -> tuple[jax.Array, ...]:
    """Scores after each block, (L, counts, B) each, that see the visible (counts, N) latents."""

    def step(z: jax.Array, l: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        z = stepper.block(z, l)
        return z, score(jnp.moveaxis(stepper.write(z, visible), 1, 0), labels)

    return jax.lax.scan(step, z, jnp.arange(depth))[1]


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Scores of N images, on the host, and which images they are of."""

    grid: Grid
    scores: Scores
    """NumPy arrays (T, W, L, N)."""
    digests: np.ndarray
    """(N,) uint64, of the images as the model sees them."""

    def __len__(self) -> int:
        return len(self.digests)

    def index(self, num_tokens: int, width: int, depth: int) -> tuple[int, int, int]:
        """Indices of a sub-network in the arrays; ValueError if the grid does not hold it."""
        axes = (self.grid.tokens, self.grid.widths, self.grid.depths)
        wanted = dict(num_tokens=num_tokens, width=width, depth=depth)
        for (name, value), axis in zip(wanted.items(), axes, strict=True):
            if value not in axis:
                raise ValueError(f"{name}={value}: these outcomes hold {', '.join(map(str, axis))}")
        t, w, l = (axis.index(x) for axis, x in zip(axes, wanted.values(), strict=True))
        return t, w, l


def digest(images: Any) -> np.ndarray:
    """Images (B, H, W, C) -> (B,) uint64: the same for the same pixels."""
    hashes = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in np.asarray(images))
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def join(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several batches as one."""
    if not parts:
        raise ValueError("parts=(): no outcomes, so no images")
    scores = [dataclasses.astuple(part.scores) for part in parts]
    joined = Scores(*(np.concatenate(arrays, axis=-1) for arrays in zip(*scores, strict=True)))
    return Outcomes(parts[0].grid, joined, np.concatenate([part.digests for part in parts]))
