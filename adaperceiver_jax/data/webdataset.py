"""Tar shards of samples (WebDataset), read at random by an index that is written once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import operator
import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

import fsspec
import numpy as np
from tqdm import tqdm

from adaperceiver_jax.data import storage
from adaperceiver_jax.data.loading import cores
from adaperceiver_jax.data.sample import Sample

FILES = {
    "image": ("jpg", "jpeg", "png", "webp"),
    "label": ("cls",),
    "segmentation": ("seg.png", "annotation.png", "mask.png"),
    "depth": ("depth.npy", "depth.png"),
}
"""A sample's parts, by what their files end in."""
BLOCK = 512
MANY = 2 << 30
"""Bytes of shards from which on they are gone through by several processes."""


class WebDataset:
    """Files KEY.jpg and KEY.cls one after another in tar shards; images by their number."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._shards = storage.expand(pattern)
        self._path = find_index(self._shards, pattern)
        self._open()

    def _open(self) -> None:
        self._index = np.load(self._path, mmap_mode="r")
        self.fields = _kinds(self._index)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def largest_label(self) -> int | None:
        """None: its samples have no labels."""
        return int(self._index["label"].max()) if "label" in self.fields else None

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"WebDataset({self._pattern!r}: {len(self)} images in {len(self._shards)} shards)"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image, segmentation, depth: the files' bytes; label; name."""
        row = self._index[operator.index(index)]
        shard = self._shards[row["shard"]]
        sample: Sample = {}
        for name in self.fields:
            if name == "label":
                sample["label"] = np.int32(row["label"])
                continue
            # A file's name stands in the block before it.
            at, size = int(row[f"{name}_at"]), int(row[f"{name}_size"])
            block = storage.read(shard, at - BLOCK, size + BLOCK)
            sample[name] = block[BLOCK:]
            if name == "image":
                sample["name"] = f"{shard}, {block[:100].rstrip(bytes(1)).decode(errors='replace')}"
        return sample


def find_index(shards: list[str], pattern: str) -> Path:
    """The index of some shards; written if it is not there or the shards have changed."""
    stamps = [(shard.rpartition("/")[2], *storage.size_and_time(shard)) for shard in shards]
    stamp = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    name = f".adaperceiver-index-{stamp}.npy"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adaperceiver_jax"
    places = [cache] if storage.is_remote(shards[0]) else [Path(shards[0]).parent, cache]
    for place in places:
        if _is_index(place / name):
            return place / name
    index = make_index(shards, sum(size for _, size, _ in stamps), pattern)
    failure: OSError | None = None
    for place in places:
        try:
            return _store(index, place, name)
        except OSError as error:
            failure = error
    raise ValueError(
        f"{pattern}: its index cannot be written to {places[-1]} ({failure}); set "
        "XDG_CACHE_HOME to a folder where it can"
    ) from failure


def _is_index(path: Path) -> bool:
    """Whether there is one; what is damaged is none, and written anew."""
    try:
        return path.exists() and "shard" in (np.load(path, mmap_mode="r").dtype.names or ())
    except (ValueError, OSError, EOFError):
        return False


def _store(index: np.ndarray, folder: Path, name: str) -> Path:
    """The path of an index, there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, index)
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return folder / name


def make_index(shards: list[str], total: int, pattern: str) -> np.ndarray:
    """A row a sample: its shard, where its files lie in it, its label.

    ValueError names a shard that is cut short, and samples that have not what the first has.
    """
    workers = min(len(shards), len(cores())) if total > MANY else 1
    rows: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        scans: Iterable[np.ndarray] = map(scan, shards)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(workers, context)
            scans = stack.enter_context(pool).map(scan, shards)
        named = f"index of {pattern}"
        scans = tqdm(scans, named, len(shards), unit="shard", disable=None)
        for number, found in enumerate(scans):
            found["shard"] = number
            rows.append(found)
    rows = [found for found in rows if len(found)]
    if not rows:
        raise ValueError(f"{pattern}: its shards hold no images ({', '.join(FILES['image'])})")
    for found in rows:
        if found.dtype != rows[0].dtype:
            shard, other = shards[rows[0]["shard"][0]], shards[found["shard"][0]]
            raise ValueError(
                f"{shard} has {', '.join(_kinds(rows[0]))}, but {other} has "
                f"{', '.join(_kinds(found))}; all shards must have the same"
            )
    return np.concatenate(rows)


def _kinds(index: np.ndarray) -> tuple[str, ...]:
    """The parts of FILES that an index has."""
    names = index.dtype.names or ()
    return tuple(name for name in FILES if name in names or f"{name}_at" in names)


def scan(shard: str) -> np.ndarray:
    """The rows of one shard."""
    size, _ = storage.size_and_time(shard)
    samples: dict[str, dict[str, Any]] = {}
    end = 0
    with fsspec.open(shard, "rb").open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    after = member.offset_data + member.size
                    if after > size:
                        raise tarfile.ReadError(f"{member.name} goes beyond the end")
                    end = -(-after // BLOCK) * BLOCK
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    what = next((w for w, ends in FILES.items() if ending.lower() in ends), None)
                    if not member.isfile() or what is None:
                        continue
                    sample = samples.setdefault(f"{folder}/{stem}", {})
                    if what in sample or f"{what}_at" in sample:
                        raise ValueError(
                            f"{shard}, {member.name}: is a second {what} of {stem}; give each "
                            "sample a key of its own, and one file of a kind"
                        )
                    if what == "label":
                        text = tar.extractfile(member).read()  # type: ignore[union-attr]
                        sample["label"] = _number(text, f"{shard}, {member.name}")
                    else:
                        sample[f"{what}_at"] = member.offset_data
                        sample[f"{what}_size"] = member.size
        except tarfile.TarError as error:
            raise ValueError(
                f"{shard}: is no whole tar file; was its copy cut short? ({error})"
            ) from error
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(
                f"{shard}: is no whole tar file; was its copy cut short? (it ends without its mark)"
            )
    return _rows(samples, shard)


def _number(text: bytes, name: str) -> int:
    digits = text.strip()
    if not digits.isdigit() or int(digits) > np.iinfo(np.int32).max:
        shown = digits[:40].decode(errors="replace")
        raise ValueError(f"{name}: holds {shown!r}, not the number of a class")
    return int(digits)


def _rows(samples: dict[str, dict[str, Any]], shard: str) -> np.ndarray:
    wanted: set[str] = set()
    for sample in samples.values():
        wanted |= sample.keys()
    fields: list[tuple[str, type]] = [("shard", np.int32)]
    for name in FILES:
        if name == "label" and name in wanted:
            fields.append(("label", np.int32))
        elif f"{name}_at" in wanted:
            fields += [(f"{name}_at", np.int64), (f"{name}_size", np.int64)]
    if "image_at" not in wanted:
        return np.zeros(0, [("shard", np.int32)])
    rows = np.zeros(len(samples), fields)
    for i, (key, sample) in enumerate(samples.items()):
        missing = wanted - sample.keys()
        if missing:
            what = sorted(name.removesuffix("_at").removesuffix("_size") for name in missing)[0]
            raise ValueError(f"{shard}: {key.strip('/')} has no {what}; others have one")
        for name, value in sample.items():
            rows[i][name] = value
    return rows
