"""Opening a data set by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from adaperceiver_jax.data.pipeline import Source
from adaperceiver_jax.data.scenes import CLASSES, Scenes

SOURCES = ("scenes",)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set's two parts."""

    train: Source
    validation: Source
    num_classes: int
    keep: bool = False
    """Small, and slower to make than to remember: kept in memory once made."""


def open_source(
    name: str,
    folder: str,
    image_size: int,
    train_count: int,
    validation_count: int,
    seed: int,
    difficulty: float = 0.7,
) -> Opened:
    """The data set `name`; ValueError says what is missing."""
    if folder and not Path(folder).is_dir():
        raise ValueError(
            f"config.data.dir={folder!r}: there is no such folder; give the one that holds the "
            "prepared data set, or train on what needs none: --config.data.source=scenes"
        )
    if name not in SOURCES:
        raise ValueError(
            f"config.data.source={name!r}: must be one of {', '.join(SOURCES)}; other data sets "
            "are not read yet. With ':runlocal' behind its name, any config trains on scenes"
        )
    if folder:
        raise ValueError(f"config.data.dir={folder!r}: {name} are rendered, not read; leave it out")
    for key, count in (("train_count", train_count), ("validation_count", validation_count)):
        if count < 1:
            raise ValueError(f"config.data.{key}={count}: say how many {name} to render")
    return Opened(
        train=Scenes(train_count, image_size, "train", seed, difficulty),
        validation=Scenes(validation_count, image_size, "validation", seed, difficulty),
        num_classes=len(CLASSES),
        keep=True,
    )
