"""Writes a data set as ArrayRecord files, which are read at random from a local or mounted disk.

python tools/prepare_data.py folder:photos /data/photos --validation 10%
python tools/prepare_data.py 'wds:/tars/imagenet12k-train-{0000..1023}.tar' /data/imagenet12k \\
    --validation 'wds:/tars/imagenet12k-validation-{0000..0511}.tar' --expect imagenet12k
python main.py --config=configs/stage1_tokens.py --workdir=runs/stage1 --config.data.dir=/data

Every image is decoded once; those that cannot be are left out, named here and in dataset.json. The
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import io
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from adaperceiver_jax.convert.whole import write_bytes, write_whole
from adaperceiver_jax.data.array_records import ABOUT, count_all, count_records
from adaperceiver_jax.data.augment import check_label
from adaperceiver_jax.data.decode import BadImageError, decode, depth_map, label_map, read_image
from adaperceiver_jax.data.loading import cores, end_with_parent, spared
from adaperceiver_jax.data.sample import Sample, Source
from adaperceiver_jax.data.sources import SCENES, Opened, Split, open_source

PER_SHARD = 10_000
"""Images per file, unless said otherwise."""
PLAN = ".preparing.json"
"""Settings that a folder was begun with; is there until all is written."""
SHOWN = 20
"""Images left out that are named on the screen."""
PUBLISHED: dict[str, tuple[int, int, int | None]] = {
    "imagenet12k": (12_129_687, 472_840, 11_821),
    "imagenet1k": (1_281_167, 50_000, 1000),
    "ade20k": (20_210, 2_000, 150),
    "nyuv2": (47_584, 654, None),
}
"""Training images, validation images and classes of data sets as they were published."""


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
        """Says what was written and what was left out; is there before the file is."""
        return self.path.with_name(f".{self.path.name}.json")

    def is_done(self) -> bool:
        """True if an earlier call wrote all of it."""
        if not (self.path.exists() and self.report.exists()):
            return False
        try:
            return count_records(str(self.path)) == json.loads(self.report.read_text())["count"]
        except ValueError:
            return False


def check_published(opened: Opened, name: str) -> None:
    """ValueError unless a data set has as many images and classes as the published one."""
    *images, classes = PUBLISHED[name]
    train, validation = opened.train, opened.validation
    for split, part, want in zip(("train", "validation"), (train, validation), images, strict=True):
        found = len(part.source)
        if found != want:
            raise ValueError(
                f"{name} has {want:,} {split} images, but {found:,} are here: are all its files?"
            )
    shown = max(train.smallest_num_classes, validation.smallest_num_classes)
    found = train.num_classes or validation.num_classes or shown
    if classes and found and found != classes:
        raise ValueError(f"{name} has {classes:,} classes, but {found:,} are here")


def prepare(
    opened: Opened, folder: Path, per_shard: int = PER_SHARD, workers: int = 1
) -> dict[str, Any]:
    """Writes both splits into `folder`, or goes on where an earlier call stopped.

    Every image is decoded; those that cannot be are left out and named. ValueError if the folder
    was begun with another data set, holds something else or is being written by another process.

    Returns:
      The content of dataset.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": opened.train, "validation": opened.validation}
    sources = {name: split.source for name, split in splits.items()}
    num_classes = opened.train.num_classes or opened.validation.num_classes
    plan = {
        "images": {name: len(source) for name, source in sources.items()},
        "sources": {name: repr(source) for name, source in sources.items()},
        "fields": list(opened.train.fields),
        "num_classes": num_classes,
        "per_shard": per_shard,
    }
    with _alone(folder):
        _begin(folder, plan)
        shards = [
            shard
            for name, split in splits.items()
            for shard in _shards(folder, name, split, per_shard, num_classes)
        ]
        _write_all(shards, sources, workers)
        about: dict[str, Any] = {
            "splits": {},
            "num_classes": num_classes,
            "smallest_num_classes": max(split.smallest_num_classes for split in splits.values()),
            "classes": list(opened.train.classes),
            "left_out": [],
        }
        for name in splits:
            some = [shard for shard in shards if shard.split == name]
            reports = [json.loads(shard.report.read_text()) for shard in some]
            images = sum(report["count"] for report in reports)
            if sum(count_all([str(shard.path) for shard in some])) != images:
                raise ValueError(f"{folder}: its {name} files were changed meanwhile; take it away")
            about["splits"][name] = {"images": images, "shards": len(some)}
            about["left_out"] += [line for report in reports for line in report["bad"]]
        write_bytes(folder / ABOUT, json.dumps(about, indent=1).encode())
        for path in (folder / PLAN, *(shard.report for shard in shards)):
            path.unlink()
    return about


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """ValueError if another process writes into the folder."""
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
        write_bytes(path, json.dumps(plan).encode())
    for hidden in folder.glob(".*"):
        if hidden.suffix != ".json":  # what an interrupted write left
            hidden.unlink()


def _shards(
    folder: Path, name: str, split: Split, per_shard: int, num_classes: int | None
) -> Iterator[Shard]:
    images = len(split.source)
    count = math.ceil(images / per_shard)
    for i in range(count):
        path = folder / f"{name}-{i:05d}-of-{count:05d}.array_record"
        first, last = images * i // count, images * (i + 1) // count
        yield Shard(path, name, first, last, num_classes if "label" in split.fields else None)


def _write_all(shards: list[Shard], sources: dict[str, Source], workers: int) -> None:
    """Writes those that are not there yet."""
    waiting = [shard for shard in shards if not shard.is_done()]
    workers = min(workers, len(waiting))
    with contextlib.ExitStack() as stack:
        written: Iterator[int]
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            with spared():
                pool = context.Pool(workers, _begin_process, (sources,))
            written = stack.enter_context(pool).imap_unordered(write_shard, waiting)
        else:
            _sources.update(sources)
            written = map(write_shard, waiting)
        total = sum(shard.last - shard.first for shard in shards)
        bar = stack.enter_context(tqdm(total=total, unit="image", disable=None))
        bar.update(total - sum(shard.last - shard.first for shard in waiting))
        for images in written:
            bar.update(images)


_sources: dict[str, Source] = {}
"""Sources of this process, by split: too large to be sent with every shard."""


def _begin_process(sources: dict[str, Source]) -> None:
    _sources.update(sources)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # by which a pool ends them
    end_with_parent()


def write_shard(shard: Shard) -> int:
    """Writes the file, there whole or not at all; returns the number of images looked at."""
    source = _sources[shard.split]

    def write(place: Path) -> None:
        # One record a chunk, so that one is read alone; images are compressed already.
        writer = ArrayRecordWriter(str(place), "group_size:1,uncompressed")
        count, bad = 0, []
        for i in range(shard.first, shard.last):
            try:
                writer.write(record(source[i], shard.num_classes))
                count += 1
            except (BadImageError, FileNotFoundError, PermissionError) as error:
                bad.append(str(error))
        writer.close()
        write_bytes(shard.report, json.dumps({"count": count, "bad": bad}).encode())

    write_whole(shard.path, write)
    return shard.last - shard.first


def record(sample: Sample, num_classes: int | None) -> bytes:
    """A sample as a tf.train.Example; BadImageError if any of it does not decode."""
    name = sample["name"]
    image = decode(read_image(sample["image"], name), name)
    features: dict[str, bytes | int] = {"image": sample["image"]}
    features["name"] = "/".join(name.split("/")[-2:]).encode()
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
    return example(features)


def example(features: Mapping[str, bytes | int]) -> bytes:
    """The record of a tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2  # takes a second: not for --help

    message = tf_example_pb2.Example()
    for name, value in features.items():
        feature = message.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value)
    return message.SerializeToString(deterministic=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("source", help="folder:PATH, wds:SHARDS or tfds:NAME, as config.data.source")
    out.add_argument("folder", type=Path, help="where the files go; a new one")
    out.add_argument(
        "--validation", default="", help="another source, or a part held out: 10%%; else its own"
    )
    out.add_argument("--dir", default="", help="where TFDS has its data sets")
    out.add_argument(
        "--expect",
        choices=sorted(PUBLISHED),
        help="ends at once unless there are as many images and classes as were published",
    )
    out.add_argument("--per-shard", type=int, default=PER_SHARD, help="images a file (%(default)s)")
    out.add_argument("--workers", type=int, default=0, help="processes; 0, the default: one a core")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, writes."""
    options = parser().parse_args(argv)
    try:
        for name, least in (("per_shard", 1), ("workers", 0)):
            if getattr(options, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}={getattr(options, name)}: must be at least {least}")
        if options.source == SCENES:
            raise ValueError("scenes are rendered as they are needed; there is nothing to prepare")
        opened = open_source(options.source, options.dir, options.validation)
        if options.expect:
            check_published(opened, options.expect)
        about = prepare(opened, options.folder, options.per_shard, options.workers or len(cores()))
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    if bad := about["left_out"]:
        print(f"{len(bad)} images do not decode and were left out:")
        print("\n".join(f"  {line}" for line in bad[:SHOWN]))
        if len(bad) > SHOWN:
            print(f"  ... all are listed in {options.folder / ABOUT}")
    counts = ", ".join(f"{part['images']:,} {name}" for name, part in about["splits"].items())
    print(f"{options.folder}: {counts} images. Train on them with")
    print(f"  --config.data.source=array_record:{os.path.abspath(options.folder)}")


if __name__ == "__main__":
    main()
