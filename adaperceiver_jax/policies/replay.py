"""Results that a policy would have had, looked up in outcomes: nothing is run again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from adaperceiver_jax.evaluate.flops import exit_test_flops, flops
from adaperceiver_jax.evaluate.outcomes import Outcomes
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.policies.budgets import Budgets


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs of each part of one image's way."""

    embed: float
    """Patches, their keys and values."""
    read: float
    once: float
    """Queries that all images of a batch share, whatever its size."""
    block: float
    test: float

    def image(self, depth: Any, tests: Any, batch_size: int) -> Any:
        """FLOPs of an image in a full batch that ran this number of blocks and readouts, or of
        each image for arrays of them."""
        shared = self.embed + self.read + self.once / batch_size
        return shared + depth * self.block + tests * self.test


@functools.lru_cache
def costs(
    config: AdaPerceiverConfig,
    num_tokens: int,
    width: int,
    image_size: tuple[int, int],
    attention: str,
) -> Costs:
    alone, two = (
        flops(
            config.replace(output_feat_dim=None),
            num_tokens,
            width,
            1,
            image_size,
            attention=attention,
            batch_size=batch_size,
        )
        for batch_size in (1, 2)
    )
    parts = alone.by_part
    once = 2 * (alone.total - two.total)
    patches = image_size[0] * image_size[1] // config.patch_size**2
    keys_values = 4 * patches * config.embed_dim**2
    embed = parts["patch_embed"] + parts["embed_ffn"] + keys_values
    block = parts["projections"] + parts["attention"] + parts["ffn"]
    test = exit_test_flops(config, num_tokens)
    return Costs(embed, alone.total - embed - once - block - test, once, block, test)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Results of N images."""

    right: np.ndarray
    """(N,) bool"""
    depth: np.ndarray
    """(N,) blocks run until the image left"""
    gflops: np.ndarray
    """(N,) of the image's own sub-network and its exit tests; choosing not included"""


def replay(
    config: AdaPerceiverConfig,
    budgets: Budgets,
    outcomes: Outcomes,
    *,
    batch_size: int = 1,
    attention: str = "cut",
) -> Replayed:
    """Looks up what these budgets give the images of the outcomes, in their order.

    batch_size: over which what a batch shares is spread; 1 is what `ap.flops` counts. ValueError
    for budgets that the outcomes do not hold; early exits need those of every depth.
    """
    if len(budgets) != len(outcomes):
        raise ValueError(f"budgets: {len(budgets)} for the outcomes of {len(outcomes)} images")
    depths = outcomes.grid.depths
    if budgets.tau is not None and depths != tuple(range(1, depths[-1] + 1)):
        raise ValueError(
            f"budgets.tau: images leave at any depth, but the outcomes hold depths {depths}; sweep "
            "all depths"
        )
    right, gflops = np.empty(len(budgets), bool), np.empty(len(budgets))
    depth = budgets.depth.copy()
    size = (config.image_size, config.image_size)
    for t, w, l in sorted({*zip(*(x.tolist() for x in _axes(budgets)), strict=True)}):
        rows = np.flatnonzero((np.stack(_axes(budgets)) == [[t], [w], [l]]).all(0))
        at = outcomes.index(t, w, l)
        if budgets.tau is not None:
            confidence = outcomes.scores.confidence[at[0], at[1], : at[2] + 1][:, rows]
            leaves = confidence >= budgets.tau[rows]
            leaves[-1] = True
            depth[rows] = leaves.argmax(0) + 1
        tests = depth[rows] if budgets.tau is not None else np.ones_like(rows)
        places = np.searchsorted(depths, depth[rows])
        right[rows] = outcomes.scores.right[at[0], at[1], places, rows]
        cost = costs(config, t, w, size, attention)
        gflops[rows] = cost.image(depth[rows], tests, batch_size) / 1e9
    return Replayed(right, depth, gflops)


def _axes(budgets: Budgets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return budgets.num_tokens, budgets.width, budgets.depth


def join_budgets(parts: Sequence[Budgets]) -> Budgets:
    """The budgets that one policy gave several batches, as one."""
    t, w, l = (np.concatenate(axis) for axis in zip(*map(_axes, parts), strict=True))
    taus = [part.tau for part in parts if part.tau is not None]
    if len(taus) not in (0, len(parts)):
        raise ValueError("parts: in some images may leave early, in others none; take one policy's")
    return Budgets(t, w, l, np.concatenate(taus) if taus else None)
