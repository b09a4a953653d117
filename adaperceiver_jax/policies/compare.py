"""Policies side by side: accuracy, FLOPs and time, as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.evaluate.outcomes import Outcomes, digest
from adaperceiver_jax.evaluate.plotting import MARKS, finish, scale_costs, start
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.fixed import Baseline
from adaperceiver_jax.policies.mix import Mix
from adaperceiver_jax.policies.replay import join_budgets, replay
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
    gain: float | None = None
    """Accuracy above the baselines mixed at the same GFLOPs; None for the baselines themselves."""
    gain_error: float | None = None
    """One standard error of it, over the images."""

    def timed(self, ms: float) -> Row:
        return dataclasses.replace(self, ms=ms)


def compare(
    model: AdaPerceiver,
    policies: Mapping[str, Policy],
    batches: Iterable[Any],
    outcomes: Outcomes,
) -> list[Row]:
    """A row a policy, on batches of the images (B, H, W, C) whose outcomes these are, in order.

    The last batch may hold fillers beyond them. Gains are over those policies that are a `Baseline`
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
    found, gflops = {}, {}
    for name, policy in policies.items():
        chosen = join_budgets(budgets[name])
        found[name] = replay(model.config, chosen, outcomes, attention=model.attention)
        gflops[name] = float(found[name].gflops.mean()) + policy.gflops
    whole = [name for name, policy in policies.items() if is_whole(policy, model.config)]
    mix = Mix(
        np.array([found[name].right for name in whole]), np.array([gflops[name] for name in whole])
    )
    rows = []
    for name, policy in policies.items():
        right = found[name].right
        row = Row(name, float(right.mean()), gflops[name], policy.gflops, len(outcomes))
        if whole and name not in whole:
            gain, error = mix.gain(right, gflops[name])
            row = dataclasses.replace(row, gain=gain, gain_error=error)
        rows.append(row)
    return rows


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


COLUMNS = ("policy", "accuracy", "gflops", "choosing_gflops", "gain", "gain_error", "ms", "images")


def csv_text(rows: Sequence[Row]) -> str:
    """The content of a CSV file, a line a row; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = dataclasses.asdict(row)
        writer.writerow({n: f"{v:.7g}" if isinstance(v, float) else v for n, v in values.items()})
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = [
        "| policy | accuracy (%) | GFLOPs | choosing | above baselines | ms an image |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms = "-" if row.ms is None else f"{row.ms:.3g}"
        choosing = f"{row.choosing_gflops:.3g}" if row.choosing_gflops else "-"
        gain = "-"
        if row.gain is not None and row.gain_error is not None:
            gain = f"{100 * row.gain:+.2f} +- {100 * row.gain_error:.2f}"
        cells = [row.policy, f"{100 * row.accuracy:.2f}", f"{row.gflops:.4g}", choosing, gain, ms]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Accuracy against GFLOPs: a line for each kind of policy, the name before its bracket.

    Hollow, and broken lines, where images may leave early. The oracle, far above all others, is a
    line of text.
    """
    kinds: dict[tuple[str, str], list[Row]] = {}
    names = {"Baseline": "one budget for all", "EE": "one budget for all"}
    for row in rows:
        kind, early = row.policy.partition(" (")[0], re.search(r"tau=[\d.]+", row.policy)
        kinds.setdefault((names.get(kind, kind), early.group() if early else ""), []).append(row)
    oracles = kinds.pop(("Optimal", ""), [])
    looks = {kind: i for i, kind in enumerate(dict.fromkeys(kind for kind, _ in kinds))}
    taus = list(dict.fromkeys(tau for _, tau in kinds if tau))
    lines = {"": "-"} | {tau: ("--", ":", "-.")[i % 3] for i, tau in enumerate(taus)}
    figure, (axes,) = start("GFLOPs an image, on average", "top-1 accuracy (%)", title, width=9.5)
    for (kind, tau), found in kinds.items():
        found = sorted(found, key=lambda row: row.gflops)
        x, y = [row.gflops for row in found], [100 * row.accuracy for row in found]
        i = looks[kind]
        color = f"C{(i - 1) % 10}" if i else "black"
        axes.plot(
            *(x, y, MARKS[i % len(MARKS)]),
            color=color,
            mfc="white" if tau else color,
            ls=lines[tau] if len(found) > 1 else "",
            label=f"{kind}, then {tau}" if tau else kind,
            ms=6,
            lw=1.2,
            alpha=0.85,
        )
    if oracles:
        text = f"oracle: {100 * oracles[0].accuracy:.1f}% at {oracles[0].gflops:.4g} GFLOPs"
        axes.text(0.98, 0.03, text, transform=axes.transAxes, ha="right", fontsize=9)
    scale_costs(axes, [row.gflops for found in kinds.values() for row in found] or [1.0], 2)
    finish(figure, path)
