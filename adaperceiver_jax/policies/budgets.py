"""What a policy is, and what it says: the budget of every image."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.typing import ArrayLike

from adaperceiver_jax.models.outputs import Embedded


@dataclasses.dataclass(frozen=True)
class Budgets:
    """What each of B images may take."""

    num_tokens: np.ndarray
    """(B,) int"""
    width: np.ndarray
    """(B,) int"""
    depth: np.ndarray
    """(B,) int, blocks at most"""
    tau: np.ndarray | None = None
    """(B,) float32: an image leaves once its confidence (its largest softmax probability) is at
    least this, tested after every block. None: nobody leaves early."""

    def __post_init__(self) -> None:
        if np.ndim(self.num_tokens) != 1:
            raise ValueError(
                f"num_tokens of shape {np.shape(self.num_tokens)}: must be (B,), an entry an image"
            )
        for name in ("num_tokens", "width", "depth"):
            value = np.asarray(getattr(self, name))
            if not np.issubdtype(value.dtype, np.integer):
                raise ValueError(f"{name} of dtype {value.dtype}: must be integers")
            object.__setattr__(self, name, value)
        if self.tau is not None:
            tau = np.asarray(self.tau, np.float32)
            outside = np.flatnonzero(~((tau >= 0) & (tau <= 1)))
            if outside.size:
                raise ValueError(
                    f"tau={tau.flat[outside[0]]} of image {outside[0]}: must be a probability, "
                    "0 to 1"
                )
            object.__setattr__(self, "tau", tau)
        for name in ("width", "depth", "tau"):
            shape = np.shape(getattr(self, name))
            if getattr(self, name) is not None and shape != self.num_tokens.shape:
                raise ValueError(
                    f"{name} of shape {shape}: must be {self.num_tokens.shape}, as num_tokens"
                )

    @classmethod
    def fixed(
        cls, batch: int, num_tokens: int, width: int, depth: int, tau: float | None = None
    ) -> Budgets:
        """The same budget for each of `batch` images."""
        return cls(
            np.full(batch, num_tokens),
            np.full(batch, width),
            np.full(batch, depth),
            None if tau is None else np.full(batch, tau, np.float32),
        )

    def __len__(self) -> int:
        return len(self.num_tokens)

    def first(self, count: int) -> Budgets:
        """Those of the first `count` images."""
        tau = None if self.tau is None else self.tau[:count]
        return Budgets(self.num_tokens[:count], self.width[:count], self.depth[:count], tau)


class Policy:
    """Images in, a budget an image out."""

    gflops: float = 0.0
    """Of choosing, an image, beyond embedding it, which the model does anyway."""

    def __call__(self, images: ArrayLike) -> Budgets:
        """Budgets of images (B, H, W, C), normalised."""
        return self.choose(images, None)

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        """Budgets of images (B, H, W, C), normalised.

        embedded: what the model made of them already, where it did.
        """
        raise NotImplementedError(f"{type(self).__name__}.choose: a policy must define it")
