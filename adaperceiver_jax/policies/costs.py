"""What serving one image costs, part by part."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from adaperceiver_jax.evaluate.flops import exit_test_flops, flops
from adaperceiver_jax.models.config import AdaPerceiverConfig


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs of each part of one image's way."""

    embed: float
    """Patches, their keys and values."""
    read: float
    once: float
    """Of a batch that is read, whatever its size: queries that all its images share."""
    block: float
    test: float

    def image(self, depth: Any, tests: Any, batch_size: int) -> Any:
        """Of one image in a full batch that ran so many blocks and readouts; or of each image of
        arrays of them."""
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
