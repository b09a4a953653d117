"""A run's durations, in steps."""

from __future__ import annotations

import dataclasses

from adaperceiver_jax.train.settings import Settings, parse_duration, steps_of


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's durations, in steps."""

    last: int
    warmup: int
    evaluate: int
    save: int


def make_plan(settings: Settings, images: int) -> Plan:
    """The durations for an epoch of so many images; ValueError where they make no sense."""

    def steps(text: str, name: str, total: int | None = None) -> int:
        return steps_of(text, f"config.{name}", images, settings.batch_size, total)

    last = steps(settings.length, "length")
    if last < 1:
        raise ValueError(f"config.length={settings.length!r}: is less than one step")
    warmup = steps(settings.schedule.warmup, "schedule.warmup", last)
    for section, name in (
        (settings.evaluation, "evaluation.every"),
        (settings.checkpoint, "checkpoint.every"),
    ):
        if parse_duration(section.every, f"config.{name}")[0] == 0:
            raise ValueError(f"config.{name}={section.every!r}: must be above 0")
    every = [
        max(1, steps(section.every, name, last))
        for section, name in (
            (settings.evaluation, "evaluation.every"),
            (settings.checkpoint, "checkpoint.every"),
        )
    ]
    return Plan(last, warmup, *every)
