"""Writing a data set as ArrayRecord: in shards, by several processes, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from adaperceiver_jax.data.array_records import ABOUT, count_all, count_records
from adaperceiver_jax.data.augment import check_label
from adaperceiver_jax.data.decode import BadImageError, decode, depth_map, label_map, read_image
from adaperceiver_jax.data.examples import encode
from adaperceiver_jax.data.loading import end_with_parent, spared
from adaperceiver_jax.data.sample import Sample, Source
from adaperceiver_jax.data.sources import Opened, Split

PER_SHARD = 10_000
"""Images, unless said otherwise."""
PLAN = ".preparing.json"


@dataclasses.dataclass(frozen=True)
class Known:
    """A data set as it is published."""

    train: int
    validation: int
    num_classes: int | None


KNOWN = {
    "imagenet12k": Known(12_129_687, 472_840, 11_821),
    "imagenet1k": Known(1_281_167, 50_000, 1000),
    "ade20k": Known(20_210, 2_000, 150),
    "nyuv2": Known(47_584, 654, None),
}


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to be written."""

    path: Path
    split: str
    first: int
    last: int
    num_classes: int | None

    @property
    def report(self) -> Path:
        """Says what was written and what was not; is there before the file is."""
        return self.path.with_name(f".{self.path.name}.json")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was written."""

    counts: dict[str, int]
    """Images, by split."""
    bad: tuple[str, ...]
    """What was left out, and why."""


def check_known(opened: Opened, name: str) -> None:
    """ValueError unless a data set has as many images and classes as the published one."""
    known = KNOWN[name]
    for split, want in (("train", known.train), ("validation", known.validation)):
        found = len(getattr(opened, split).source)
        if found != want:
            raise ValueError(
                f"{name} has {want:,} {split} images, but {found:,} are here: are all its files?"
            )
    train, validation = opened.train, opened.validation
    shown = max(train.smallest_num_classes, validation.smallest_num_classes)
    found = train.num_classes or validation.num_classes or shown
    if known.num_classes and found and found != known.num_classes:
        raise ValueError(f"{name} has {known.num_classes:,} classes, but {found:,} are here")


def prepare(opened: Opened, folder: Path, per_shard: int = PER_SHARD, workers: int = 1) -> Prepared:
    """Writes both splits into `folder`, or goes on where an earlier call stopped.

    Every image is decoded; those that cannot be are left out and named. ValueError if the folder
    was begun with another data set, holds something else or is being written by another process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _prepare(opened, folder, per_shard, workers)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """ValueError if another process is in it, for the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # there are file systems that know no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder}: is being written by another process") from None
        yield
    finally:
        os.close(handle)


def _prepare(opened: Opened, folder: Path, per_shard: int, workers: int) -> Prepared:
    splits = {"train": opened.train, "validation": opened.validation}
    sources = {name: split.source for name, split in splits.items()}
    num_classes = opened.train.num_classes or opened.validation.num_classes
    images = {name: len(source) for name, source in sources.items()}
    plan = {
        "images": images,
        "sources": {name: repr(source) for name, source in sources.items()},
        "fields": list(opened.train.fields),
        "num_classes": num_classes,
        "per_shard": per_shard,
    }
    _begin(folder, plan)
    shards = {
        name: list(_shards(folder, name, split, per_shard, num_classes))
        for name, split in splits.items()
    }
    waiting = [x for some in shards.values() for x in some if not _is_done(x)]
    total = sum(images.values())
    with tqdm(total=total, unit="image", disable=None) as bar:
        bar.update(total - sum(x.last - x.first for x in waiting))
        _write_all(waiting, sources, workers, bar)
    reports = {
        name: [json.loads(x.report.read_text()) for x in some] for name, some in shards.items()
    }
    bad = tuple(line for some in reports.values() for report in some for line in report["bad"])
    counts = {name: sum(report["count"] for report in some) for name, some in reports.items()}
    for name, some in shards.items():
        if sum(count_all([str(x.path) for x in some])) != counts[name]:
            raise ValueError(f"{folder}: its {name} files were changed meanwhile; take it away")
    about = {
        "splits": {
            name: {"images": counts[name], "shards": len(some)} for name, some in shards.items()
        },
        "num_classes": num_classes,
        "smallest_num_classes": max(split.smallest_num_classes for split in splits.values()),
        "classes": list(opened.train.classes),
        "left_out": list(bad),
    }
    _write_text(folder / ABOUT, json.dumps(about, indent=1))
    for path in (folder / PLAN, *(x.report for some in shards.values() for x in some)):
        path.unlink()
    return Prepared(counts, bad)


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Leaves the plan in a new folder; ValueError for one with another."""
    if (folder / ABOUT).exists():
        raise ValueError(f"{folder}: is prepared already; to do it anew, take the folder away")
    path = folder / PLAN
    if path.exists():
        before = json.loads(path.read_text())
        different = sorted(name for name in plan if before.get(name) != plan[name])
        if different:
            name = different[0]
            raise ValueError(
                f"{folder}: was begun with {name}={before.get(name)}, this is {plan[name]}; take "
                "the folder away, or give what it was begun with"
            )
    elif any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; name a new folder")
    else:
        _write_text(path, json.dumps(plan))
    for left in folder.glob(".*.tmp"):
        left.unlink()


def _shards(
    folder: Path, name: str, split: Split, per_shard: int, num_classes: int | None
) -> Iterator[Shard]:
    images = len(split.source)
    count = math.ceil(images / per_shard)
    for i in range(count):
        path = folder / f"{name}-{i:05d}-of-{count:05d}.array_record"
        first, last = images * i // count, images * (i + 1) // count
        classes = num_classes if "label" in split.fields else None
        yield Shard(path, name, first, last, classes)


def _is_done(shard: Shard) -> bool:
    """Whether an earlier call wrote it, all of it."""
    if not (shard.path.exists() and shard.report.exists()):
        return False
    try:
        return count_records(str(shard.path)) == json.loads(shard.report.read_text())["count"]
    except ValueError:
        return False


_sources: dict[str, Source] = {}
"""Of this process, by split."""
_seen: Any = None
"""How many images all processes have gone through."""


def _count() -> None:
    with _seen.get_lock():
        _seen.value += 1


def _begin_process(seen: Any, sources: dict[str, Source]) -> None:
    global _seen
    _seen = seen
    _sources.update(sources)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # by which a pool ends them
    end_with_parent()


def _write_all(shards: list[Shard], sources: dict[str, Source], workers: int, bar: tqdm) -> None:
    if workers <= 1 or len(shards) <= 1:
        for shard in shards:
            write_shard(shard, sources[shard.split], bar.update)
        return
    context = multiprocessing.get_context("spawn")
    seen = context.Value("q", 0)
    with contextlib.ExitStack() as stack:
        with spared():
            pool = context.Pool(min(workers, len(shards)), _begin_process, (seen, sources))
        stack.enter_context(pool)
        waiting = [pool.apply_async(_write_one, (shard,)) for shard in shards]
        before = 0
        while waiting:
            done = [result for result in waiting if result.ready()]
            for result in done:
                result.get()  # raises what went wrong
            waiting = [result for result in waiting if result not in done]
            bar.update(seen.value - before)
            before = seen.value
            time.sleep(0.1)


def _write_one(shard: Shard) -> None:
    write_shard(shard, _sources[shard.split], _count)


def write_shard(shard: Shard, source: Source, seen: Callable[[], Any]) -> None:
    """Writes the file, there whole or not at all; `seen` is called after each image."""
    temporary = shard.path.with_name(f".{shard.path.name}.{os.getpid()}.tmp")
    # One record a chunk, so that one is read alone; images are compressed already.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    bad: list[str] = []
    count = 0
    for i in range(shard.first, shard.last):
        try:
            writer.write(record(source[i], shard.num_classes))
            count += 1
        except (BadImageError, FileNotFoundError, PermissionError) as error:
            bad.append(str(error))
        seen()
    writer.close()
    _write_text(shard.report, json.dumps({"count": count, "bad": bad}))
    os.replace(temporary, shard.path)


def record(sample: Sample, num_classes: int | None) -> bytes:
    """A sample as a record; BadImageError if any of it does not decode."""
    name = sample["name"]
    image = decode(read_image(sample["image"], name), name)
    features: dict[str, bytes | str | int] = {"image": sample["image"]}
    features["name"] = "/".join(name.split("/")[-2:])
    if "label" in sample:
        label = int(sample["label"])
        check_label(label, num_classes, name)
        features["label"] = label
    for what in ("segmentation", "depth"):
        if what not in sample:
            continue
        data = sample[what]
        made = label_map(data, name) if what == "segmentation" else depth_map(data, name, 1000.0)
        if made.size != image.size:
            raise BadImageError(f"{name}: its {what} is {made.size}, the image {image.size}")
        if not isinstance(data, bytes):
            file = io.BytesIO()
            np.save(file, np.asarray(data))
            data = file.getvalue()
        features[what] = data
    return encode(features)


def _write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
