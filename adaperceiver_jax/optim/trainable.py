"""Training a part of the parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Nested dicts (trained, frozen) of a nested dict, which may hold anything.

    Trained is what one of the patterns, regular expressions, matches whole: 'write_head/.*' is
    all of the write head. Without patterns all is trained.
    """
    if isinstance(patterns, str):
        raise ValueError(f"patterns={patterns!r}: must be a sequence of strings, ({patterns!r},)")
    flat = flatten_dict(params, sep="/")
    if not patterns:
        return params, {}
    matched = {p: {name for name in flat if re.fullmatch(p, name)} for p in patterns}
    for pattern, names in matched.items():
        if not names:
            tops = ", ".join(sorted({name.split("/")[0] for name in flat}))
            raise ValueError(
                f"pattern {pattern!r} matches no parameter; it must match a whole name such as "
                f"{min(flat)!r}. The top-level names are {tops}"
            )
    trained = set.union(*matched.values())
    return (
        unflatten_dict({k: v for k, v in flat.items() if k in trained}, sep="/"),
        unflatten_dict({k: v for k, v in flat.items() if k not in trained}, sep="/"),
    )


def merge(trained: Any, frozen: Any) -> Any:
    """The reverse of `split`."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))
