"""Data sets of TensorFlow Datasets, prepared as ArrayRecord; no TensorFlow is needed to read."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import numpy as np

from adaperceiver_jax.data.array_records import count_all
from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.sample import Sample

SPLITS = {"train": ("train",), "validation": ("validation", "test")}
FIELDS = {"image": "image", "label": "label", "annotation": "segmentation", "depth": "depth"}


class TfdsData:
    """One split of a prepared data set."""

    def __init__(self, name: str, folder: str, split: str) -> None:
        """folder: where TFDS has its data sets; '' takes its own place. ValueError says what is
        missing."""
        self._arguments = (name, folder, split)
        import tensorflow_datasets as tfds

        place = {"data_dir": folder} if folder else {}
        command = (
            f"prepare it once, where TensorFlow is: tfds build {name} --file_format=array_record"
            + (f" --data_dir={folder}" if folder else "")
        )
        where = folder or tfds.core.constants.DATA_DIR
        try:
            builder = tfds.builder(name, try_gcs=False, **place)
            there = builder.info.splits
        except Exception as error:
            raise ValueError(f"tfds:{name}: is not in {where}; {command}") from error
        if not there:
            raise ValueError(f"tfds:{name}: is known, but not prepared in {where}; {command}")
        names = SPLITS[split]
        self.split = next((name for name in names if name in there), None)
        self._name, self._features = name, builder.info.features
        if self.split is None:
            return
        form = builder.info.file_format
        if form is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"tfds:{name}: is prepared in {where} as {form and form.value}, which needs "
                f"TensorFlow to be read, not as ArrayRecord; {command}"
            )
        self._files = [str(path) for path in there[self.split].filepaths]
        self._counts = list(there[self.split].shard_lengths)
        self.fields = tuple(FIELDS[name] for name in FIELDS if name in self._features)
        skipped = {
            name: tfds.decode.SkipDecoding()
            for name, feature in self._features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._data = builder.as_data_source(split=self.split, decoders=skipped)

    def check(self) -> None:
        """ValueError names a file that is not there, or not whole."""
        for path, count, want in zip(
            self._files, count_all(self._files), self._counts, strict=True
        ):
            if count != want:
                raise ValueError(f"{path}: holds {count} records, not {want} as TFDS says")

    def __reduce__(self) -> tuple[Any, ...]:
        return TfdsData, self._arguments  # opened anew: builders do not travel

    @property
    def num_classes(self) -> int | None:
        """Of its labels."""
        return self._features["label"].num_classes if "label" in self._features else None

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"TfdsData({self._name}, {self.split}: {len(self)} images)"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image and segmentation: encoded; label; depth (H, W); name."""
        i = operator.index(index)
        try:
            record = self._data[i]
        except Exception as error:
            raise BadImageError(f"{self._place(i)}: cannot be read: {error}") from error
        sample = {FIELDS[key]: record[key] for key in FIELDS if key in record}
        if "label" in sample:
            sample["label"] = np.int32(sample["label"])
        name, place = record.get("file_name", b""), self._place(i)
        sample["name"] = f"{place}, {name.decode()}" if name else place
        return sample

    def _place(self, index: int) -> str:
        """Where a record is, for people."""
        return f"tfds:{self._name}, {self.split} image {index}"
