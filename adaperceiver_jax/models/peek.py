"""The peeking network: from what a cheap sub-network predicts to a choice of budget."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adaperceiver_jax.models.layers import activation
from adaperceiver_jax.models.policy import PolicyOutput

LEAST = -20.0
"""Log-probabilities below it are as good as it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeekConfig:
    """Classes of the prediction it looks at, and how many choices each axis has."""

    num_classes: int
    hidden: int = 64
    token_choices: int
    width_choices: int = 1
    depth_choices: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: must be at least 1")


class PeekNetwork(nn.Module):
    """A small MLP on log-probabilities, one linear head an axis.

    The sub-network it looks at runs anyway where the smallest budget is chosen, and says more of
    how hard an image is than its patches do, at a hundredth of a PolicyNetwork's cost.
    """

    config: PeekConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.fc1 = nn.Dense(c.hidden, dtype=self.dtype)
        self.fc2 = nn.Dense(c.hidden, dtype=self.dtype)
        self.head_tokens = nn.Dense(c.token_choices)
        self.head_mat_dim = nn.Dense(c.width_choices)
        self.head_depth = nn.Dense(c.depth_choices)

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        return jax.ShapeDtypeStruct((1, self.config.num_classes), jnp.float32)

    def __call__(self, log_probs: jax.Array) -> PolicyOutput:
        """log_probs (B, classes), of a sub-network."""
        c = self.config
        if log_probs.ndim != 2 or log_probs.shape[1] != c.num_classes:
            raise ValueError(f"log_probs of shape {log_probs.shape}: must be (B, {c.num_classes})")
        x = jnp.maximum(log_probs.astype(jnp.float32), LEAST) / 4  # about unit size
        x = activation("gelu", self.fc1(x))
        x = activation("gelu", self.fc2(x))
        return PolicyOutput(self.head_tokens(x), self.head_mat_dim(x), self.head_depth(x))
