"""Policies side by side: accuracy, FLOPs and time, as a table and a CSV file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.evaluate.outcomes import Outcomes, digest
from adaperceiver_jax.evaluate.points import csv_rows, pareto
from adaperceiver_jax.evaluate.turns import take_turns
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.policies.budgets import Baseline, Budgets, Policy
from adaperceiver_jax.policies.replay import Replayed, join_budgets, replay
from adaperceiver_jax.policies.serve import Server


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy over the same images."""

    policy: str
    accuracy: float
    """Top 1, in [0, 1]."""
    gflops: float
    """Mean per image, exit tests and choosing included."""
    choosing_gflops: float
    images: int
    ms: float | None = None
    """Mean per image, the median of the repeats."""
    over_baselines: float | None = None
    """Accuracy above the best mix of the baselines that costs no more; None where there is none."""
    over_baselines_error: float | None = None
    """One standard error of it, over the images."""
    over_fixed: float | None = None
    """Accuracy above the best mix of any fixed sub-networks that were swept."""
    over_fixed_error: float | None = None

    def timed(self, ms: float) -> Row:
        return dataclasses.replace(self, ms=ms)


@dataclasses.dataclass(frozen=True)
class Mix:
    """K sub-networks over the same N images."""

    right: np.ndarray
    """(K, N) bool"""
    gflops: np.ndarray
    """(K,) of an image"""

    @functools.cached_property
    def corners(self) -> list[int]:
        """Indices of the K that beat all mixes of others at their cost, the cheapest first."""
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

    def gain(self, right: np.ndarray, gflops: float) -> tuple[float | None, float | None]:
        """Accuracy of a policy above the mix of its cost, and the standard error of that.

        Image by image: what is hard for both cancels. The mix is the best on these very images; the
        policy's cost is taken as given. Both are None where no mix is so cheap; the error of one
        image is NaN.

        Args:
          right: (N,) bool, the policy's.
          gflops: what it takes of an image on average, choosing included.
        """
        mixed = self.at(gflops)
        if mixed is None:
            return None, None
        difference = right - mixed
        error = difference.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else np.nan
        return float(difference.mean()), float(error)


def compare(
    model: AdaPerceiver,
    policies: Mapping[str, Policy],
    batches: Iterable[Any],
    outcomes: Outcomes,
) -> list[Row]:
    """A row a policy, on batches of the images (B, H, W, C) whose outcomes these are, in order.

    The last batch may hold fillers beyond them. Baselines are those policies that are a `Baseline`
    of full width and depth.
    """
    budgets: dict[str, list[Budgets]] = {name: [] for name in policies}
    seen = 0
    for images in batches:
        images = jax.device_get(images)[: len(outcomes) - seen]
        if not np.array_equal(digest(images), outcomes.digests[seen : seen + len(images)]):
            raise ValueError(
                f"images from {seen} on: are not those of the outcomes; sweep these images"
            )
        seen += len(images)
        for name, policy in policies.items():
            budgets[name].append(policy(images))
    found = {
        name: replay(model.config, join_budgets(each), outcomes, attention=model.attention)
        for name, each in budgets.items()
    }
    whole = [name for name, policy in policies.items() if is_whole(policy, model.config)]
    fixed = (Budgets.fixed(len(outcomes), *each) for each in outcomes.grid.sub_networks())
    swept = mix_of(replay(model.config, b, outcomes, attention=model.attention) for b in fixed)
    baselines = mix_of(found[name] for name in whole) if whole else None
    rows = []
    for name, policy in policies.items():
        right, gflops = found[name].right, float(found[name].gflops.mean()) + policy.gflops
        over = baselines if name not in whole else None
        gains = (over.gain(right, gflops) if over else (None, None)) + swept.gain(right, gflops)
        accuracy, count = float(right.mean()), len(outcomes)
        rows.append(Row(name, accuracy, gflops, policy.gflops, count, None, *gains))
    return rows


def mix_of(fixed: Iterable[Replayed]) -> Mix:
    """The mix of sub-networks, each replayed for all images."""
    found = [(each.right, each.gflops.mean()) for each in fixed]
    right, gflops = zip(*found, strict=True)
    return Mix(np.array(right), np.array(gflops))


def is_whole(policy: Policy, config: AdaPerceiverConfig) -> bool:
    """True for a baseline of full width and depth."""
    whole = (config.full_width, config.depth)
    return isinstance(policy, Baseline) and (policy.width, policy.depth) == whole


def time_policies(
    model: AdaPerceiver,
    params: Any,
    policies: Mapping[str, Policy],
    images: np.ndarray,
    batch_size: int,
    repeats: int,
) -> dict[str, float]:
    """Milliseconds an image (N, H, W, C) takes under each policy, served in one stream."""
    calls = {
        name: functools.partial(Server(model, params, policy, batch_size=batch_size), images)
        for name, policy in policies.items()
    }
    turns = take_turns(calls, repeats)
    return {name: 1e3 * turns.seconds(name) / len(images) for name in policies}


COLUMNS = (
    *("policy", "accuracy", "gflops", "choosing_gflops"),
    *("over_baselines", "over_baselines_error", "over_fixed", "over_fixed_error"),
    *("ms", "images"),
)


def csv_text(rows: Sequence[Row]) -> str:
    """The content of a CSV file, a line a row; what was not measured is empty."""
    return csv_rows(COLUMNS, rows)


def markdown(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    head = ("policy", "accuracy (%)", "GFLOPs", "choosing", "over baselines", "over any fixed")
    lines = [f"| {' | '.join((*head, 'ms an image'))} |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        cells = (
            *(row.policy, f"{100 * row.accuracy:.2f}", f"{row.gflops:.4g}"),
            f"{row.choosing_gflops:.3g}" if row.choosing_gflops else "-",
            points_text(row.over_baselines, row.over_baselines_error),
            points_text(row.over_fixed, row.over_fixed_error),
            "-" if row.ms is None else f"{row.ms:.3g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def points_text(gain: float | None, error: float | None) -> str:
    """'+0.52 +- 0.07', in points of accuracy, or '-'."""
    if gain is None or error is None:
        return "-"
    return f"{100 * gain:+.2f} +- {100 * error:.2f}"
