"""Samples, where they come from, and the parts of a data set."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

Sample = dict[str, Any]
"""Arrays, and of a source that reads files their bytes and the image's name."""


class Source(Protocol):
    """Samples by their number; the same number always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one part of a data set."""

    source: Source
    fields: tuple[str, ...]
    """Names in its samples: 'image' and 'label', 'segmentation' or 'depth'."""
    num_classes: int | None = None
    """Number of classes by the data set's own word; None if it gives none."""
    smallest_num_classes: int = 0
    """Largest label plus 1, where labels were looked through; else 0."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where they are known."""
