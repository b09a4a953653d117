"""ArrayRecord files of tf.train.Examples: those of tools/prepare_data.py, or of TFDS."""

from __future__ import annotations

import json
import operator
from typing import Any, SupportsIndex

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from adaperceiver_jax.data import storage
from adaperceiver_jax.data.examples import decode
from adaperceiver_jax.data.sample import Sample

ABOUT = "dataset.json"
"""What tools/prepare_data.py leaves beside the files: classes, and how many images a split has."""
NAMES = {"image": ("image",), "label": ("label",), "segmentation": ("segmentation", "annotation")}
NAMES |= {"depth": ("depth",), "name": ("name", "file_name")}
"""What a sample's parts are called in a record."""


class ArrayRecords:
    """Files of records, one image each."""

    def __init__(self, files: list[str]) -> None:
        for path in files:
            if storage.is_remote(path):
                raise ValueError(
                    f"{path}: ArrayRecord files are read from disks only; mount the bucket "
                    "(gcsfuse) and give the folder, or read tar shards (wds:), which need no mount"
                )
            count_records(path)
        self._files = files
        self._records = ArrayRecordDataSource(files)
        self.fields = ("image", *(name for name in NAMES if name in self._sample(0)))
        self.fields = tuple(dict.fromkeys(name for name in self.fields if name != "name"))

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        first = self._files[0].rpartition("/")[2]
        return f"ArrayRecords({len(self._files)} files from {first!r}: {len(self)} images)"

    def _sample(self, index: int) -> dict[str, Any]:
        try:
            record = decode(self._records[index])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"record {index} of {self._files[0]} and so on: {error}") from error
        found = {}
        for name, keys in NAMES.items():
            key = next((key for key in keys if key in record), None)
            if key is not None:
                found[name] = record[key]
        if "image" not in found:
            raise ValueError(
                f"{self._files[0]}: its records have no 'image' but {', '.join(sorted(record))}"
            )
        return found

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: an encoded one; label; name; segmentation and depth where there are any."""
        i = operator.index(index)
        sample = self._sample(i)
        name = sample.get("name", b"")
        name = name.decode() if isinstance(name, bytes) and name else f"record {i}"
        sample["name"] = name if len(self._files) > 1 else f"{self._files[0]}, {name}"
        if "label" in sample:
            sample["label"] = np.int32(sample["label"])
        return sample


def count_records(path: str) -> int:
    """In an ArrayRecord file; ValueError if it is damaged or cut short."""
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


def find_files(pattern: str, split: str) -> tuple[list[str], dict[str, Any]]:
    """The files of a split and what dataset.json says: of a folder that tools/prepare_data.py
    made; or those of a pattern, which is of training images alone."""
    if not storage.is_folder(pattern):
        return (storage.expand(pattern) if split == "train" else []), {}
    path = f"{pattern.rstrip('/')}/{ABOUT}"
    try:
        about = json.loads(storage.read(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: is not there. Name the files (array_record:{pattern.rstrip('/')}/train-*), "
            "or make the folder with tools/prepare_data.py"
        ) from error
    if split not in about["splits"]:
        return [], about
    files = storage.expand(f"{pattern.rstrip('/')}/{split}-*-of-*.array_record")
    want = about["splits"][split]["shards"]
    if len(files) != want:
        raise ValueError(
            f"{pattern}: has {len(files)} files of {split}, not {want} as {ABOUT} says"
        )
    return files, about
