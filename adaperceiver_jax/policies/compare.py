"""Policies side by side: accuracy, FLOPs and time, as a table and a CSV file."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.evaluate.csv_rows import csv_rows
from adaperceiver_jax.evaluate.outcomes import Outcomes, digest
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.fixed import Baseline
from adaperceiver_jax.policies.mix import Mix
from adaperceiver_jax.policies.replay import Replayed, join_budgets, replay
from adaperceiver_jax.policies.serve import Server


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy over the same images."""

    policy: str
    accuracy: float
    """Top 1, in [0, 1]."""
    gflops: float
    """Of an image on average, exit tests and choosing included."""
    choosing_gflops: float
    images: int
    ms: float | None = None
    """Of an image on average, the median of the repeats."""
    over_baselines: float | None = None
    """Accuracy above the best mix of the baselines that costs no more; None where there is none."""
    over_baselines_error: float | None = None
    """One standard error of it, over the images."""
    over_fixed: float | None = None
    """The same over any fixed sub-networks that were swept."""
    over_fixed_error: float | None = None

    def timed(self, ms: float) -> Row:
        return dataclasses.replace(self, ms=ms)


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
    over_fixed = mix_of(replay(model.config, b, outcomes, attention=model.attention) for b in fixed)
    over_baselines = mix_of(found[name] for name in whole) if whole else None
    rows = []
    for name, policy in policies.items():
        right, gflops = found[name].right, float(found[name].gflops.mean()) + policy.gflops
        row = Row(name, float(right.mean()), gflops, policy.gflops, len(outcomes))
        if over_baselines and name not in whole and (gain := over_baselines.gain(right, gflops)):
            row = dataclasses.replace(row, over_baselines=gain[0], over_baselines_error=gain[1])
        if gain := over_fixed.gain(right, gflops):
            row = dataclasses.replace(row, over_fixed=gain[0], over_fixed_error=gain[1])
        rows.append(row)
    return rows


def mix_of(fixed: Iterable[Replayed]) -> Mix:
    """Of sub-networks, each replayed for all images."""
    found = [(each.right, each.gflops.mean()) for each in fixed]
    right, gflops = zip(*found, strict=True)
    return Mix(np.array(right), np.array(gflops))


def is_whole(policy: Policy, config: AdaPerceiverConfig) -> bool:
    """Whether it is a baseline of full width and depth."""
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
    """Milliseconds an image (N, H, W, C) takes under each policy, served in one stream.

    The policies take turns, so that what slows the machine down slows all of them.
    """
    servers = {
        name: Server(model, params, policy, batch_size=batch_size)
        for name, policy in policies.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(repeats + 1):
        for name, server in servers.items():
            began = time.perf_counter()
            server(images)
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(each) / len(images) for name, each in seconds.items()}


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
