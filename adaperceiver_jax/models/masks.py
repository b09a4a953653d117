"""Masks: the latents that a latent may attend to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


def blocks_of(num_tokens: int, granularities: Sequence[int]) -> tuple[int, ...]:
    """Upper bounds of the mask's blocks for a run with `num_tokens` latents.

    Granularities above num_tokens are dropped; the last block always ends at num_tokens.
    """
    kept = tuple(g for g in granularities if g <= num_tokens)
    return kept if kept and kept[-1] == num_tokens else (*kept, num_tokens)


@dataclasses.dataclass(frozen=True)
class LatentMask:
    """The mask over `blocks[-1]` latents: 'block', 'causal' or 'none' (everything visible)."""

    kind: str
    blocks: tuple[int, ...]
    """Upper bounds: a query in [blocks[k-1], blocks[k]) sees the keys below blocks[k]."""

    @property
    def num_tokens(self) -> int:
        return self.blocks[-1]

    def spans(self) -> list[tuple[int, int]]:
        """(first, end) of each block: its queries are first..end-1, its keys 0..end-1."""
        return list(zip((0, *self.blocks[:-1]), self.blocks, strict=True))

    def array(self) -> np.ndarray | None:
        """(N, N) bool, True where the query (row) sees the key (column); None: all True."""
        positions = np.arange(self.num_tokens)
        if self.kind == "causal":
            return positions[:, None] >= positions[None, :]
        if self.kind == "none" or len(self.blocks) == 1:
            return None
        block = np.searchsorted(self.blocks, positions, side="right")
        return block[:, None] >= block[None, :]


def make_mask(kind: str, num_tokens: int, granularities: Sequence[int]) -> LatentMask:
    """The mask of one run; only 'block' looks at the granularities."""
    blocks = blocks_of(num_tokens, granularities) if kind == "block" else (num_tokens,)
    return LatentMask(kind, blocks)
