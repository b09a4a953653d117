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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

import fsspec
import numpy as np
from tqdm import tqdm

from adaperceiver_jax.data import storage
from adaperceiver_jax.data.loading import cores
from adaperceiver_jax.data.sample import Sample, Split

FILES = {
    "image": ("jpg", "jpeg", "png", "webp"),
    "label": ("cls",),
    "segmentation": ("seg.png", "annotation.png", "mask.png"),
    "depth": ("depth.npy", "depth.png"),
}
"""A sample's parts, by what their files end in."""
BLOCK = 512
CUT_SHORT = "is no whole tar file; was its copy cut short?"
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

    def num_labels(self) -> int:
        """The largest label plus 1; 0 if samples have none."""
        return int(self._index["label"].max()) + 1 if "label" in self.fields else 0

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
    """True if there is one; a damaged one is none and is written again."""
    try:
        return path.exists() and "shard" in (np.load(path, mmap_mode="r").dtype.names or ())
    except (ValueError, OSError, EOFError):
        return False


def _store(index: np.ndarray, folder: Path, name: str) -> Path:
    """The path of an index, there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.save(file, index)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return folder / name


def make_index(shards: list[str], total: int, pattern: str) -> np.ndarray:
    """A row per sample: its shard, where its files lie in it, its label.

    ValueError names a shard that is cut short, and samples that have not what the first has.
    """
    workers = min(len(shards), len(cores())) if total > MANY else 1
    with contextlib.ExitStack() as stack:
        scans: Iterable[np.ndarray] = map(scan, shards)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(workers, context)
            scans = stack.enter_context(pool).map(scan, shards)
        bar = tqdm(scans, f"index of {pattern}", len(shards), unit="shard", disable=None)
        found = list(bar)
    for number, rows in enumerate(found):
        rows["shard"] = number
    found = [rows for rows in found if len(rows)]
    if not found:
        raise ValueError(f"{pattern}: its shards hold no images ({', '.join(FILES['image'])})")
    for rows in found:
        if rows.dtype != found[0].dtype:
            shard, other = shards[found[0]["shard"][0]], shards[rows["shard"][0]]
            raise ValueError(
                f"{shard} has {', '.join(_kinds(found[0]))}, but {other} has "
                f"{', '.join(_kinds(rows))}; all shards must have the same"
            )
    return np.concatenate(found)


def _kinds(index: np.ndarray) -> tuple[str, ...]:
    """The parts of FILES that an index has."""
    names = index.dtype.names or ()
    return tuple(kind for kind in FILES if kind in names or f"{kind}_at" in names)


def scan(shard: str) -> np.ndarray:
    """The rows of one shard."""
    size, _ = storage.size_and_time(shard)
    samples: dict[str, dict[str, int]] = {}
    end = 0
    with fsspec.open(shard, "rb").open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    after = member.offset_data + member.size
                    if after > size:
                        raise tarfile.ReadError(f"{member.name} goes beyond the end")
                    end = -(-after // BLOCK) * BLOCK
                    if member.isfile():
                        _add(samples, member, tar, f"{shard}, {member.name}")
        except tarfile.TarError as error:
            raise ValueError(f"{shard}: {CUT_SHORT} ({error})") from error
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"{shard}: {CUT_SHORT} (it ends without its mark)")
    return _rows(samples, shard)


def _add(
    samples: dict[str, dict[str, int]], member: tarfile.TarInfo, tar: tarfile.TarFile, name: str
) -> None:
    """Adds a file to its sample, if it is one of FILES."""
    folder, _, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    kind = next((kind for kind, endings in FILES.items() if ending.lower() in endings), None)
    if kind is None:
        return
    sample = samples.setdefault(f"{folder}/{stem}", {})
    if kind in sample or f"{kind}_at" in sample:
        raise ValueError(
            f"{name}: is a second {kind} of {stem}; give each sample a key of its own, and one "
            "file of a kind"
        )
    if kind != "label":
        sample |= {f"{kind}_at": member.offset_data, f"{kind}_size": member.size}
        return
    digits = tar.extractfile(member).read().strip()  # type: ignore[union-attr]
    if not digits.isdigit() or int(digits) > np.iinfo(np.int32).max:
        shown = digits[:40].decode(errors="replace")
        raise ValueError(f"{name}: holds {shown!r}, not the number of a class")
    sample["label"] = int(digits)


def _rows(samples: dict[str, dict[str, int]], shard: str) -> np.ndarray:
    there = {name for sample in samples.values() for name in sample}
    if "image_at" not in there:
        return np.zeros(0, [("shard", np.int32)])
    names = [name for kind in FILES for name in (kind, f"{kind}_at", f"{kind}_size")]
    fields = [(x, np.int32 if x == "label" else np.int64) for x in names if x in there]
    rows = np.zeros(len(samples), [("shard", np.int32), *fields])
    for i, (key, sample) in enumerate(samples.items()):
        if missing := there - sample.keys():
            kind = min(name.removesuffix("_at").removesuffix("_size") for name in missing)
            raise ValueError(f"{shard}: {key.strip('/')} has no {kind}; others have one")
        for name, value in sample.items():
            rows[i][name] = value
    return rows


def open_wds(pattern: str, folder: str, split: str) -> Split | None:
    """The training images of some shards; they have no other split."""
    if split != "train":
        return None
    shards = WebDataset(storage.join(folder, pattern))
    return Split(shards, shards.fields, smallest_num_classes=shards.num_labels())
