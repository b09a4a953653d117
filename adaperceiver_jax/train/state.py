"""What training carries from step to step."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict


@struct.dataclass
class TrainState:
    """A run after `step` updates."""

    step: jax.Array
    """() int32"""
    params: Any
    """All parameters, trained and frozen."""
    ema: Any
    """The running mean of the trained ones; the frozen ones are their own mean."""
    opt_state: Any
    """For the trained ones only."""
    memory: dict[str, jax.Array] = struct.field(default_factory=dict)
    """What the task knows of the steps before; most know nothing."""
    upcoming: dict[str, Any] = struct.field(default_factory=dict)
    """In a checkpoint only: the eigenvectors that the next refresh begins to use, where the hosts
    find them while steps go on."""

    def ema_params(self) -> Any:
        """The weights that are evaluated and handed on: all parameters, EMA where trained."""
        return unflatten_dict(flatten_dict(self.params) | flatten_dict(self.ema))
