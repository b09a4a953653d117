"""What fixed sub-networks get at any cost: the images dealt at random to two of them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from adaperceiver_jax.evaluate.plotting import pareto


@dataclasses.dataclass(frozen=True)
class Mix:
    """K sub-networks over the same N images."""

    right: np.ndarray
    """(K, N) bool"""
    gflops: np.ndarray
    """(K,) of an image"""

    @functools.cached_property
    def corners(self) -> list[int]:
        """Those of the K that are above all mixes of others at their cost, the cheapest first."""
        x, y = self.gflops.tolist(), self.right.mean(1).tolist()
        corners: list[int] = []
        for i in pareto(x, y):
            while len(corners) > 1:
                a, b = corners[-2:]
                if (y[b] - y[a]) * (x[i] - x[a]) > (y[i] - y[a]) * (x[b] - x[a]):
                    break  # b is above the line from a to i
                corners.pop()
            corners.append(i)
        return corners

    def at(self, gflops: float) -> np.ndarray | None:
        """(N,) how often each image is right in the most accurate mix that costs no more.

        None where each of the K costs more.
        """
        costs = self.gflops[self.corners]
        if gflops < costs[0]:
            return None
        dear = int(np.searchsorted(costs, gflops, side="right"))
        cheap = self.right[self.corners[dear - 1]].astype(float)
        if dear == len(costs):
            return cheap
        share = (gflops - costs[dear - 1]) / (costs[dear] - costs[dear - 1])
        return (1 - share) * cheap + share * self.right[self.corners[dear]]

    def gain(self, right: np.ndarray, gflops: float) -> tuple[float, float] | None:
        """Accuracy of a policy above the mix of its cost, and the standard error of that.

        Image by image: what is hard for both cancels. The mix is the best on these very images; the
        policy's cost is taken as given. None where no mix is so cheap; the error of one image is
        NaN.

        Args:
          right: (N,) bool, the policy's.
          gflops: what it takes of an image on average, choosing included.
        """
        mixed = self.at(gflops)
        if mixed is None:
            return None
        difference = right - mixed
        error = difference.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else np.nan
        return float(difference.mean()), float(error)
