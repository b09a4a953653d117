"""Policies that learn nothing: one budget for all, leaving early, and the oracle."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.typing import ArrayLike

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.outcomes import Outcomes, digest
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.outputs import Embedded
from adaperceiver_jax.policies.budgets import Budgets, Policy


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
