"""Opening a data set by its name: scenes, tfds:, array_record:, folder:, wds:."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np

from adaperceiver_jax.data.array_records import open_array_records, open_tfds
from adaperceiver_jax.data.folder import open_folder
from adaperceiver_jax.data.sample import Sample, Source, Split
from adaperceiver_jax.data.scenes import CLASSES, Scenes
from adaperceiver_jax.data.storage import is_folder
from adaperceiver_jax.data.webdataset import open_wds

SCENES = "scenes"
_PART = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set's two parts."""

    train: Split
    validation: Split
    rendered: bool = False
    """Made, not read: no image of it can be bad, and it is kept in memory once made."""


class Part:
    """Some images of a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"{len(self)} of {self._source!r}"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        return self._source[int(self._indices[index])]


KINDS: dict[str, Callable[[str, str, str], Split | None]] = {
    "tfds": open_tfds,
    "array_record": open_array_records,
    "folder": open_folder,
    "wds": open_wds,
}
"""Opens a split: (what stands behind the colon, config.data.dir, 'train' or 'validation')."""


def open_split(name: str, folder: str, split: str, key: str = "source") -> Split | None:
    """A split of a data set on disk; None if it has no such split.

    Args:
      name: 'KIND:WHERE', KIND one of KINDS.
      folder: config.data.dir.
      split: 'train' or 'validation'.
      key: of config.data, for the errors.
    """
    kind, colon, where = name.partition(":")
    if kind not in KINDS or not colon or not where:
        kinds = ", ".join(f"'{kind}:...'" for kind in KINDS)
        raise ValueError(
            f"config.data.{key}={name!r}: must be 'scenes', or one of {kinds} (docs/data.md). With "
            "':runlocal' behind its name, any config trains on scenes"
        )
    try:
        found = KINDS[kind](where, folder, split)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.data.{key}={name!r}: {error}") from error
    if found is not None and len(found.source) == 0:
        raise ValueError(f"config.data.{key}={name!r}: holds no images")
    return found


def open_source(
    name: str,
    folder: str = "",
    validation: str = "",
    *,
    image_size: int = 224,
    train_count: int = 0,
    validation_count: int = 0,
    seed: int = 0,
    difficulty: float = 0.7,
) -> Opened:
    """The data set `name`; ValueError says what is missing.

    Args:
      name: 'scenes', or 'KIND:WHERE' as `open_split` reads it.
      folder: where TFDS has its data sets, and what other paths are relative to.
      validation: another source; a part that is held out, '10%'; or '' for the data set's own.
      image_size: of rendered images.
      train_count: how many are rendered; of those on a disk, at most so many are drawn, 0: all.
      validation_count: likewise.
      seed: draws them, and what is held out.
      difficulty: of the hardest rendered ones, from 0 to 1.
    """
    if folder and not is_folder(folder):
        raise ValueError(
            f"config.data.dir={folder!r}: there is no such folder; give the one that data sets are "
            "in, or train on what needs none: --config.data.source=scenes"
        )
    if name == SCENES:
        for given, key in ((folder, "dir"), (validation, "validation")):
            if given:
                raise ValueError(
                    f"config.data.{key}={given!r}: scenes are rendered, not read; leave it out"
                )
        counts = {"train": train_count, "validation": validation_count}
        for split, count in counts.items():
            if count < 1:
                raise ValueError(f"config.data.{split}_count={count}: say how many to render")
        fields = ("image", "label", "segmentation", "depth")
        rendered = [
            Split(Scenes(n, image_size, split, seed, difficulty), fields, len(CLASSES))
            for split, n in counts.items()
        ]
        return Opened(rendered[0], rendered[1], rendered=True)
    train = open_split(name, folder, "train")
    if train is None:
        raise ValueError(f"config.data.source={name!r}: has no training images")
    own: Split | None
    if part := _PART.fullmatch(validation):
        train, own = _hold_out(train, float(part[1]) / 100, seed)
    elif validation:
        own = open_split(validation, folder, "validation", "validation")
        own = own or open_split(validation, folder, "train", "validation")
    else:
        own = open_split(name, folder, "validation")
    if own is None:
        raise ValueError(
            f"config.data.source={name!r}: says of no images that they are for validation; name "
            "them (config.data.validation='wds:val-*.tar'), or hold some out "
            "(config.data.validation='10%')"
        )
    if own.num_classes and train.num_classes and own.num_classes != train.num_classes:
        raise ValueError(
            f"config.data.validation={validation!r}: has {own.num_classes} classes, "
            f"{name} {train.num_classes}"
        )
    other = sorted(set(own.classes) ^ set(train.classes))
    if other and own.classes and train.classes:
        raise ValueError(
            f"config.data.validation={validation!r}: its classes must be those of {name}; "
            f"{other[0]!r} is in one of them only"
        )
    return Opened(_at_most(train, train_count, seed), _at_most(own, validation_count, seed))


def _part(split: Split, indices: np.ndarray) -> Split:
    return dataclasses.replace(split, source=Part(split.source, np.sort(indices)))


def _at_most(split: Split, count: int, seed: int) -> Split:
    """At most `count` images, drawn from all; 0 takes all."""
    size = len(split.source)
    if not 0 < count < size:
        return split
    return _part(split, np.random.default_rng(seed).permutation(size)[:count])


def _hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Training and validation: the latter is a share of all, the same for a seed."""
    count = len(split.source)
    held = round(share * count)
    if not 0 < held < count:
        raise ValueError(
            f"config.data.validation='{100 * share:g}%': holds out {held} of {count} images; take "
            "a share that leaves some to both"
        )
    order = np.random.default_rng(seed).permutation(count)
    return _part(split, order[held:]), _part(split, order[:held])
