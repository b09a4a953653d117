"""Policies: images in, a budget for each image out. Those here learn nothing: one budget for all,
leaving early, and the oracle."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.typing import ArrayLike

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.outcomes import Outcomes, digest
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.outputs import Embedded


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The budget of each of B images."""

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
        """Budgets of the first `count` images."""
        tau = None if self.tau is None else self.tau[:count]
        return Budgets(self.num_tokens[:count], self.width[:count], self.depth[:count], tau)


class Policy:
    """Images in, a budget an image out."""

    gflops: float = 0.0
    """Cost of choosing per image, beyond embedding it, which the model does anyway."""

    def __call__(self, images: ArrayLike) -> Budgets:
        """Budgets of images (B, H, W, C), normalised."""
        return self.choose(images, None)

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        """Budgets of images (B, H, W, C), normalised.

        embedded: what the model made of them already, where it did.
        """
        raise NotImplementedError(f"{type(self).__name__}.choose: a policy must define it")


class Baseline(Policy):
    """The same sub-network for every image."""

    def __init__(
        self,
        config: AdaPerceiverConfig,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        """None is all that the model has."""
        check_sub_network(config, num_tokens, width, depth)
        self.num_tokens = num_tokens or config.max_latent_tokens
        self.width = width or config.full_width
        self.depth = depth or config.depth

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        return Budgets.fixed(np.shape(images)[0], self.num_tokens, self.width, self.depth)


class EarlyExit(Policy):
    """Another policy's budgets, but an image leaves once its confidence is at least `tau`."""

    def __init__(self, tau: float, policy: Policy) -> None:
        """policy: whose tokens and widths it takes, and whose depth is the most it runs."""
        if not isinstance(policy, Policy):
            raise ValueError(f"policy={policy!r}: must be a Policy; tau comes first")
        if not 0 <= tau <= 1:
            raise ValueError(f"tau={tau}: must be a probability, 0 to 1")
        self.tau = tau
        self.policy = policy

    @property
    def gflops(self) -> float:  # type: ignore[override]
        return self.policy.gflops

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        budgets = self.policy.choose(images, embedded)
        return dataclasses.replace(budgets, tau=np.full(len(budgets), self.tau, np.float32))


class Optimal(Policy):
    """The oracle: for each image the cheapest sub-network that is right, looked up.

    It knows only images whose outcomes it was given, and their labels: a bound, not a policy to
    serve by.
    """

    def __init__(
        self, config: AdaPerceiverConfig, outcomes: Outcomes, when_never_right: str = "cheapest"
    ) -> None:
        """when_never_right: 'cheapest', which no policy can beat, or 'whole', as the reference."""
        if when_never_right not in ("cheapest", "whole"):
            raise ValueError(
                f"when_never_right={when_never_right!r}: must be 'cheapest' or 'whole'"
            )
        sub_networks = np.array(outcomes.grid.sub_networks())
        costs = [flops(config, *s).total for s in sub_networks.tolist()]
        order = np.argsort(costs, kind="stable")
        right = outcomes.scores.right.reshape(len(order), -1)[order]
        otherwise = 0 if when_never_right == "cheapest" else len(order) - 1
        best = np.where(right.any(0), right.argmax(0), otherwise)
        self._budgets = sub_networks[order][best]
        self._place = {int(d): i for i, d in enumerate(outcomes.digests)}

    def choose(self, images: ArrayLike, embedded: Embedded | None = None) -> Budgets:
        places = []
        for i, seen in enumerate(digest(jax.device_get(images)).tolist()):
            if seen not in self._place:
                raise ValueError(
                    f"image {i}: is not among the {len(self._place)} whose outcomes this oracle has"
                )
            places.append(self._place[seen])
        return Budgets(*self._budgets[places].T)
