"""Policies side by side, as a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaperceiver_jax.evaluate.figures import MARKS, finish, scale_costs, start
from adaperceiver_jax.policies.compare import Row


def plot(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Accuracy against FLOPs: a line for each kind of policy, named before how it is set.

    Where two points of a line are mixed at random is on the line between them. Hollow, and broken
    lines, where images may leave early. The cheaper half is drawn larger beside it where the others
    lie far off. The oracle, far above all others, is a line of text.
    """
    if not rows:
        raise ValueError("rows: no policy to draw")
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row.policy), []).append(row)
    oracles = kinds.pop(("Optimal", ""), [])
    drawn = [row for found in kinds.values() for row in found] or oracles
    costs = sorted(row.gflops for row in drawn)
    unit, factor = ("MFLOPs", 1e3) if costs[-1] < 0.1 else ("GFLOPs", 1.0)
    middle = costs[len(costs) // 2]
    panels = 2 if len(costs) > 10 and costs[-1] > 2 * middle else 1
    xlabel = f"{unit} an image, on average"
    figure, all_axes = start(xlabel, "top-1 accuracy (%)", title, panels, width=5.5 + 4 * panels)
    for axes in all_axes:
        draw_kinds(axes, kinds, factor, labelled=axes is all_axes[0])
    scale_costs(all_axes[0], [factor * cost for cost in costs], 2)
    if panels == 2:
        near = [100 * row.accuracy for row in drawn if row.gflops <= middle]
        x, y = 0.03 * (middle - costs[0]) or 0.1 * middle, 0.03 * (max(near) - min(near)) or 1
        all_axes[1].set(
            xlim=(factor * (costs[0] - x), factor * (middle + x)),
            ylim=(min(near) - y, max(near) + y),
            title="the cheaper half",
        )
    if oracles:
        cost = factor * oracles[0].gflops
        text = f"oracle: {100 * oracles[0].accuracy:.1f}% at {cost:.3g} {unit}"
        all_axes[0].text(0.98, 0.03, text, transform=all_axes[0].transAxes, ha="right", fontsize=9)
    finish(figure, path)


def kind_of(policy: str) -> tuple[str, str]:
    """'told (at 5.4, tau=0.9)' -> ('told', 'tau=0.9'); brackets of a run's own name stay."""
    found = re.fullmatch(r"(.*) \(((?:at |t=|tau=|never )[^()]*)\)", policy)
    name, how = found.groups() if found else (policy, "")
    tau = how.rpartition(", ")[2]
    return name, tau if tau.startswith("tau=") else ""


def draw_kinds(
    axes: Any, kinds: Mapping[tuple[str, str], Sequence[Row]], factor: float, labelled: bool
) -> None:
    """A line a (kind, tau): kinds by colour and mark, tau by how the line is broken."""
    names = {"EE": "Baseline"}
    looks = {k: i for i, k in enumerate(dict.fromkeys(names.get(kind, kind) for kind, _ in kinds))}
    taus = list(dict.fromkeys(tau for _, tau in kinds if tau))
    lines = {"": "-"} | {tau: ("--", ":", "-.")[i % 3] for i, tau in enumerate(taus)}
    steps = 20
    for (kind, tau), rows in kinds.items():
        rows = sorted(rows, key=lambda row: row.gflops)
        at = np.arange(steps * (len(rows) - 1) + 1) / steps
        i = looks[names.get(kind, kind)]
        color = f"C{(i - 1) % 10}" if i else "black"
        axes.plot(
            np.interp(at, np.arange(len(rows)), [factor * row.gflops for row in rows]),
            np.interp(at, np.arange(len(rows)), [100 * row.accuracy for row in rows]),
            MARKS[i % len(MARKS)],
            markevery=steps,
            color=color,
            mfc="white" if tau else color,
            ls=lines[tau] if len(rows) > 1 else "",
            label=(f"{kind}, {tau}" if tau else kind) if labelled else None,
            ms=6,
            lw=1.2,
            alpha=0.85,
        )
