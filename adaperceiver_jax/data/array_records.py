"""ArrayRecord files of tf.train.Examples: those of tools/prepare_data.py, or of TFDS."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import operator
import os
from typing import Any, SupportsIndex

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from adaperceiver_jax.data import storage
from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.examples import decode
from adaperceiver_jax.data.sample import Sample

OPENING = 16
"""Files that are looked into at once."""
ABOUT = "dataset.json"
"""What tools/prepare_data.py leaves beside the files: classes, and how many images a split has."""
NAMES = {"image": ("image",), "label": ("label",), "segmentation": ("segmentation", "annotation")}
NAMES |= {"depth": ("depth",), "name": ("name", "file_name")}
"""What a sample's parts are called in a record."""


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A file and its number of records, as ArrayRecord wants to be told them."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


class ArrayRecords:
    """Files of records, one image each."""

    def __init__(self, files: list[str], counts: list[int] | None = None) -> None:
        """counts: of each file's records, if they were counted before."""
        remote = next((path for path in files if storage.is_remote(path)), None)
        if remote:
            raise ValueError(
                f"{remote}: ArrayRecord files are read from disks only; mount the bucket "
                "(gcsfuse) and give the folder, or read tar shards (wds:), which need no mount"
            )
        storage.allow_many_files()  # each stays open
        self._files = files
        self._counts = count_all(files) if counts is None else counts
        self._ends = np.cumsum(self._counts)
        self._records = ArrayRecordDataSource(
            [_Whole(path, n) for path, n in zip(files, self._counts, strict=True)]
        )
        there = self._sample(0) if len(self) else {}
        self.fields = tuple(name for name in NAMES if name in there and name != "name")

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecords, (self._files, self._counts)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        first = self._files[0].rpartition("/")[2]
        return f"ArrayRecords({len(self._files)} files from {first!r}: {len(self)} images)"

    def _place(self, index: int) -> str:
        """Where a record is, for people."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._files[file]}, record {index - (self._ends[file] - self._counts[file])}"

    def _sample(self, index: int) -> dict[str, Any]:
        try:
            record = decode(self._records[index])
        except (ValueError, RuntimeError) as error:
            raise BadImageError(f"{self._place(index)}: {error}") from error
        found = {}
        for name, keys in NAMES.items():
            key = next((key for key in keys if key in record), None)
            if key is not None:
                found[name] = record[key]
        if "image" not in found:
            raise ValueError(
                f"{self._place(index)}: has no 'image' but {', '.join(sorted(record))}"
            )
        return found

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: an encoded one; label; name; segmentation and depth where there are any."""
        i = operator.index(index)
        sample = self._sample(i)
        name = sample.get("name", b"")
        place = self._place(i)
        sample["name"] = f"{place}, {name.decode(errors='replace')}" if name else place
        if "label" in sample:
            sample["label"] = np.int32(sample["label"])
        return sample


def count_all(files: list[str]) -> list[int]:
    """The records of each file."""
    with concurrent.futures.ThreadPoolExecutor(OPENING) as pool:
        return list(pool.map(count_records, files))


def count_records(path: str) -> int:
    """In an ArrayRecord file; ValueError if it is not there, damaged or cut short."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: there is no such file")
    try:
        reader = ArrayRecordReader(path)
        try:
            return reader.num_records()
        finally:
            reader.close()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: is no whole ArrayRecord file; was its copy or its writing cut short? "
            f"({str(error).partition(';')[0] or 'no end'})"
        ) from error


def open_records(place: str, split: str) -> tuple[ArrayRecords, dict[str, Any]] | None:
    """The records of a split and what dataset.json says of the data set, which is {} of files.

    place: a folder that tools/prepare_data.py made; or a pattern of files, which are training
    images. None where there is no such split.
    """
    if not storage.is_folder(place):
        if split != "train":
            return None
        try:
            return ArrayRecords(storage.expand(place)), {}
        except FileNotFoundError as error:
            raise ValueError(
                f"{error}, and no such folder; tools/prepare_data.py makes one (docs/data.md)"
            ) from error
    place = place.rstrip("/")
    remedy = (
        f"Name the files (array_record:{place}/train-*), or make the folder with "
        "tools/prepare_data.py"
    )
    try:
        about = json.loads(storage.read(f"{place}/{ABOUT}"))
        if split not in about["splits"]:
            return None
        shards, images = (about["splits"][split][name] for name in ("shards", "images"))
    except FileNotFoundError as error:
        raise ValueError(f"{place}/{ABOUT}: is not there. {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{place}/{ABOUT}: is damaged. {remedy}") from error
    files = storage.expand(f"{place}/{split}-*-of-*.array_record")
    if len(files) != shards:
        raise ValueError(
            f"{place}: has {len(files)} files of {split}, not {shards} as {ABOUT} says"
        )
    records = ArrayRecords(files)
    if len(records) != images:
        raise ValueError(
            f"{place}: holds {len(records)} images of {split}, not {images} as {ABOUT} says; was a "
            "file replaced?"
        )
    return records, about
