"""ArrayRecord files of tf.train.Examples: those of tools/prepare_data.py, of TFDS, or any others.

TFDS reads and writes them without TensorFlow. It takes a second to import, so only who reads
records does.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
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
from adaperceiver_jax.data.sample import Sample, Split

OPENING = 16
"""Files that are looked into at once."""
ABOUT = "dataset.json"
"""The file that tools/prepare_data.py leaves beside the others: classes, images per split."""
KEYS = {"image": ("image",), "label": ("label",), "segmentation": ("segmentation", "annotation")}
KEYS |= {"depth": ("depth",), "name": ("name", "file_name")}
"""A sample's parts: the names that they have in records."""
TFDS_SPLITS = {"train": ("train",), "validation": ("validation", "test")}


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A file and its number of records, as ArrayRecord wants to be told them."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class ArrayRecords:
    """Files of records, one image each."""

    def __init__(
        self,
        files: list[str],
        counts: list[int] | None = None,
        title: str = "",
        depth_shape: tuple[int, ...] | None = None,
    ) -> None:
        """
        Args:
          counts: number of records per file, if they were counted before.
          title: what `repr` says of the files, by which a run that goes on knows them again.
          depth_shape: of depth that is written as a list of numbers.
        """
        remote = next((path for path in files if storage.is_remote(path)), None)
        if remote:
            raise ValueError(
                f"{remote}: ArrayRecord files are read from disks only; mount the bucket "
                "(gcsfuse) and give the folder, or read tar shards (wds:), which need no mount"
            )
        storage.allow_many_files()  # each stays open
        self._files, self._depth_shape = files, depth_shape
        self._counts = count_all(files) if counts is None else counts
        self._ends = np.cumsum(self._counts)
        self._records = ArrayRecordDataSource(
            [_Whole(path, n, n) for path, n in zip(files, self._counts, strict=True)]
        )
        first = os.path.basename(files[0])
        self._title = title or f"ArrayRecords({len(files)} files from {first!r}"
        there = self[0] if len(self) else {}
        self.fields = tuple(name for name in KEYS if name in there and name != "name")

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecords, (self._files, self._counts, self._title, self._depth_shape)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"{self._title}: {len(self)} images)"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: an encoded one; label; name; segmentation and depth where there are any."""
        i = operator.index(index)
        file = int(np.searchsorted(self._ends, i, side="right"))
        place = f"{self._files[file]}, record {i - (self._ends[file] - self._counts[file])}"
        try:
            record = read_example(self._records[i])
        except (ValueError, RuntimeError) as error:
            raise BadImageError(f"{place}: {error}") from error
        sample: Sample = {}
        for part, keys in KEYS.items():
            if key := next((key for key in keys if key in record), ""):
                sample[part] = record[key]
        if "image" not in sample:
            raise ValueError(f"{place}: has no 'image' but {', '.join(sorted(record))}")
        if "label" in sample:
            sample["label"] = np.int32(sample["label"])
        if isinstance(sample.get("depth"), np.ndarray):
            sample["depth"] = sample["depth"].reshape(self._depth_shape)
        name = sample.get("name", b"")
        sample["name"] = f"{place}, {name.decode(errors='replace')}" if name else place
        return sample


def read_example(record: bytes) -> dict[str, Any]:
    """Features of a tf.train.Example: one value as itself, several as an array.

    ValueError if the record is something else.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"is no tf.train.Example: {error}") from error
    if not features:
        raise ValueError("is no tf.train.Example: it has no features")
    found = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else [b""]
        found[name] = values[0] if len(values) == 1 else np.array(values)
    return found


def count_all(files: list[str]) -> list[int]:
    """Number of records per file."""
    with concurrent.futures.ThreadPoolExecutor(OPENING) as pool:
        return list(pool.map(count_records, files))


def count_records(path: str) -> int:
    """Number of records of a file; ValueError if it is not there, damaged or cut short."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: there is no such file")
    try:
        with contextlib.closing(ArrayRecordReader(path)) as reader:
            return reader.num_records()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: is no whole ArrayRecord file; was its copy or its writing cut short? "
            f"({str(error).partition(';')[0] or 'no end'})"
        ) from error


def open_array_records(where: str, folder: str, split: str) -> Split | None:
    """A split of what tools/prepare_data.py made, a folder; or of files by a pattern, which are
    training images. None where there is no such split."""
    place = storage.join(folder, where)
    if not storage.is_folder(place):
        if split != "train":
            return None
        try:
            records = ArrayRecords(storage.expand(place))
        except FileNotFoundError as error:
            raise ValueError(
                f"{error}, and no such folder; tools/prepare_data.py makes one (docs/data.md)"
            ) from error
        return Split(records, records.fields)
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
    said, shown = about.get("num_classes"), about.get("smallest_num_classes", 0)
    return Split(records, records.fields, said, shown, tuple(about.get("classes", ())))


def open_tfds(name: str, folder: str, split: str) -> Split | None:
    """A split of a data set that TFDS prepared; None where it has none, ValueError if it is not
    there. folder: where TFDS has its data sets; '' takes its own place."""
    import tensorflow_datasets as tfds

    command = (
        f"prepare it once, where TensorFlow is: tfds build {name} --file_format=array_record"
        + (f" --data_dir={folder}" if folder else "")
    )
    place = folder or tfds.core.constants.DATA_DIR
    try:
        info = tfds.builder(name, try_gcs=False, data_dir=folder or None).info
        splits = info.splits
    except Exception as error:
        raise ValueError(f"tfds:{name}: is not in {place}; {command}") from error
    if not splits:
        raise ValueError(f"tfds:{name}: is known, but not prepared in {place}; {command}")
    own = next((x for x in TFDS_SPLITS[split] if x in splits), None)
    if own is None:
        return None
    form = info.file_format
    if form is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"tfds:{name}: is prepared in {place} as {form and form.value}, which needs "
            f"TensorFlow to be read, not as ArrayRecord; {command}"
        )
    files = [str(path) for path in splits[own].filepaths]
    counts = list(splits[own].shard_lengths)
    for path, count, want in zip(files, count_all(files), counts, strict=True):
        if count != want:
            raise ValueError(f"{path}: holds {count} records, not {want} as TFDS says")
    features = info.features
    shape = features["depth"].shape if "depth" in features else None
    records = ArrayRecords(files, counts, f"TfdsData({name}, {own}", shape)
    classes = features["label"].num_classes if "label" in features else None
    return Split(records, records.fields, classes)
