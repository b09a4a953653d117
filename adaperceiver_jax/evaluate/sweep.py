"""How right every sub-network of a classifier is, and what it costs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.masks import blocks_of


@dataclasses.dataclass(frozen=True)
class Point:
    """One sub-network."""

    num_tokens: int
    width: int
    depth: int
    accuracy: float
    """Top 1, in [0, 1]."""
    gflops: float
    """Of one image."""


def sweep(
    model: AdaPerceiver,
    params: Any,
    batches: Iterable[tuple[jax.Array, jax.Array]],
    tokens: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
) -> list[Point]:
    """Every depth of every token count and width, over labelled images.

    Args:
      batches: normalised images (B, H, W, C), labels (B,). All of one size compile once.
      tokens: counts, trained or not; None is the trained ones.
      widths: None is the trained ones.

    The trained token counts share one pass a width; each other count takes one of its own.
    """
    c = model.config
    trained = c.token_granularities
    tokens = trained if tokens is None else tuple(tokens)
    widths = c.widths if widths is None else tuple(widths)
    runs = [trained] if any(t in trained for t in tokens) else []
    runs += [blocks_of(t, trained) for t in tokens if t not in trained]

    def count(
        params: Any, images: jax.Array, labels: jax.Array, width: jax.Array, run: tuple[int, ...]
    ) -> jax.Array:
        """(T, L) right answers of each token count of a run at each depth."""
        all_widths = jnp.broadcast_to(width, images.shape[:1])
        logits = model.apply({"params": params}, images, all_widths, run, method="grid")
        return (jnp.asarray(logits).argmax(-1) == labels).sum(-1)

    compiled = jax.jit(count, static_argnums=4)
    right: dict[tuple[int, int], np.ndarray] = collections.defaultdict(
        lambda: np.zeros(c.depth, np.int64)
    )
    images_seen = 0
    for images, labels in batches:
        images_seen += len(labels)
        for run in runs:
            for width in widths:
                counts = np.asarray(compiled(params, images, labels, jnp.int32(width), run))
                for t, by_depth in zip(run, counts, strict=True):
                    if run is trained or t == run[-1]:
                        right[t, width] += by_depth
    if not images_seen:
        raise ValueError("batches: held no images")
    return [
        Point(t, w, l, float(right[t, w][l - 1] / images_seen), flops(c, t, w, l).total / 1e9)
        for t in tokens
        for w in widths
        for l in range(1, c.depth + 1)
    ]
