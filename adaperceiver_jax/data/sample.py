"""What a source gives: one image and what is known of it."""

from __future__ import annotations

from typing import Any, Protocol

Sample = dict[str, Any]
"""Arrays, and of a source that reads files their bytes and the image's name."""


class Source(Protocol):
    """Samples by their number; the same number always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
