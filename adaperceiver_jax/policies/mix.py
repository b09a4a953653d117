"""What one budget for all gets at any cost: two baselines, images dealt to them at random."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mix:
    """Baselines over the same N images, K of them."""

    right: np.ndarray
    """(K, N) bool"""
    gflops: np.ndarray
    """(K,) of an image"""

    def weights(self, gflops: float) -> np.ndarray:
        """(K,) share of the images each gets: the most accurate mix that costs no more than this.

        All of them go to the cheapest baseline where even that costs more.
        """
        one = np.eye(len(self.gflops))
        baselines = list(zip(self.gflops, one, strict=True))
        mixes = []
        for (low, cheap), (high, dear) in itertools.product(baselines, repeat=2):
            if low <= min(gflops, high):
                share = 1.0 if high <= gflops else (gflops - low) / (high - low)
                mixes.append((1 - share) * cheap + share * dear)
        if not mixes:
            return one[self.gflops.argmin()]
        return max(mixes, key=lambda weights: weights @ self.right.mean(1))

    def gain(self, right: np.ndarray, gflops: float) -> tuple[float, float]:
        """Accuracy of a policy above the mix of its cost, and the standard error of that.

        Image by image: what is hard for both cancels. The mix is the best on these images and the
        policy's cost is taken as given.

        Args:
          right: (N,) bool, the policy's.
          gflops: what it takes of an image on average, choosing included.
        """
        difference = right - self.weights(gflops) @ self.right
        error = difference.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else 0.0
        return float(difference.mean()), float(error)
