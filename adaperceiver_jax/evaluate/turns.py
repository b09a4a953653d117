"""Timing programs in turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds of every call, in the order of the turns, by the program's name."""

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]
    """Seconds over all cores."""

    def seconds(self, name: str) -> float:
        """The median of a program's calls."""
        return statistics.median(self.wall[name])

    def ratios(self, name: str, over: str, kind: str = "wall") -> list[float]:
        """One program's seconds over another's, turn by turn; kind: 'wall' or 'processor'."""
        seconds = self.wall if kind == "wall" else self.processor
        return [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]


def take_turns(
    programs: Mapping[str, Callable[[], Any]],
    repeats: int,
    note: Callable[[str], None] = lambda text: None,
) -> Turns:
    """Calls every program once per turn, so that what slows the machine down slows all of them.

    Turns go forwards and backwards in alternation. Before them each program is called twice,
    untimed: once to compile, and once more since only then memory is where it stays. A program must
    wait for what it computes. `note` is told what is done next.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    for name, program in [*programs.items()] * 2:
        note(f"warming up: {name}")
        program()
    turns = Turns({name: [] for name in programs}, {name: [] for name in programs})
    for repeat in range(repeats):
        note(f"turn {repeat + 1} of {repeats}")
        for name in list(programs)[:: 1 if repeat % 2 == 0 else -1]:
            wall, processor = time.perf_counter(), time.process_time()
            programs[name]()
            turns.wall[name].append(time.perf_counter() - wall)
            turns.processor[name].append(time.process_time() - processor)
    return turns


def spread(values: Sequence[float]) -> str:
    """'1.05 (0.98 to 1.31)': the median, the least and the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def note(text: str) -> None:
    """Prints progress to stderr, away from the results."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
