"""Speed of a config's data pipeline in images per second, and where the time goes.

python tools/benchmark_data.py --config=configs/finetune_in1k.py --config.data.dir=DIR
python tools/benchmark_data.py --config=configs/finetune_in1k.py --made=256    # without data

First step by step on one core, in one thread; then the whole pipeline, on one core and on all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, SupportsIndex

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what configs import
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leaves accelerators to who trains

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from PIL import Image

from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.decode import decode, read_image, reduce
from adaperceiver_jax.data.loading import Loading, cores
from adaperceiver_jax.data.pipeline import TrainOrder, train_batches
from adaperceiver_jax.data.sample import Sample, Source
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.data.transforms import draw_crop

HEIGHT, WIDTH = 375, 500
"""Size of made-up photographs: the most common one of ImageNet."""
LENGTH = 1_281_167
GRAIN = 8.0
"""Noise, in grey levels, that gives files of ImageNet's size: some 105 kB."""
ROUNDS = 5
Step = Callable[[Sample, np.random.Generator], Any]


class MadePhotos:
    """JPEGs of rendered scenes, for measuring where there is no data set.

    They are kept in memory, and come again and again until there are as many as in ImageNet.
    """

    fields = ("image", "label")

    def __init__(self, count: int) -> None:
        scenes = Scenes(count, WIDTH)
        self._files = []
        for i in range(count):
            noise = np.random.default_rng(i).normal(0, GRAIN, (HEIGHT, WIDTH, 3))
            pixels = np.clip(scenes[i]["image"][:HEIGHT] + noise, 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling="4:2:0")
            self._files.append(file.getvalue())

    def __len__(self) -> int:
        return LENGTH

    def __repr__(self) -> str:
        count = len(self._files)
        size = sum(map(len, self._files)) / count / 1000
        return f"{count} made-up JPEGs of {WIDTH} x {HEIGHT}, {size:.0f} kB each"

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """image: a file's bytes; label 0; name."""
        i = index.__index__() % len(self._files)
        return {"image": self._files[i], "label": np.int32(0), "name": f"made-up photograph {i}"}


@contextlib.contextmanager
def on_cores(wanted: list[int]) -> Iterator[None]:
    """Keeps this process, and what it starts, on these cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = cores()
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def steps_of(preparation: Preparation) -> dict[str, Step]:
    """Functions of an encoded sample: each does what the one before it does, and one thing more."""
    a, done = preparation.augment, AugmentSettings(flip=False)

    def decoded(sample: Sample, rng: np.random.Generator) -> Image.Image:
        """Decodes at the fraction that the part to be cut out asks for."""
        image = read_image(sample["image"], sample["name"])
        left, top, right, bottom = 0, 0, *image.size
        if a.crop:
            left, top, right, bottom = draw_crop(rng, *image.size[::-1], a.crop, a.crop_ratio)
        if not a.rotation:
            reduce(image, (right - left, bottom - top), preparation.size[::-1])
        return decode(image, sample["name"])

    steps: dict[str, Step] = {"decoded": decoded}
    for name, fields in {
        "turned": ("rotation",),
        "cut and resized" if a.crop else "resized": ("crop", "crop_ratio"),
        "mirrored": ("flip",),
        "RandAugment": ("rand_augment", "magnitude", "bins"),
        "colours changed": ("jitter",),
    }.items():
        if getattr(a, fields[0]) or "resized" in name:
            done = dataclasses.replace(done, **{field: getattr(a, field) for field in fields})
            steps[name] = dataclasses.replace(preparation, augment=done).train
    return steps


def time_steps(source: Source, preparation: Preparation, images: int) -> dict[str, float]:
    """Seconds per image of reading and every step of the preparation, each with all before it.

    In one thread; the median of ROUNDS.
    """
    steps = steps_of(preparation)
    taken: dict[str, list[float]] = {name: [] for name in ("read", *steps)}
    for round_ in range(ROUNDS + 1):
        began = time.perf_counter()
        samples = [source[i % len(source)] for i in range(images)]
        read = time.perf_counter() - began
        times = {"read": read}
        for name, step in steps.items():
            began = time.perf_counter()
            for i, sample in enumerate(samples):
                step(sample, np.random.default_rng((0, i)))
            times[name] = read + time.perf_counter() - began
        if round_:  # the first warms up
            for name, seconds in times.items():
                taken[name].append(seconds)
    return {name: statistics.median(times) / images for name, times in taken.items()}


def time_batches(
    source: Source, preparation: Preparation, batch_size: int, batches: int, loading: Loading
) -> float:
    """Seconds per image of the whole pipeline: shuffled, prepared, batched, handed over."""
    order = TrainOrder(source, 0, preparation.train, tolerant=True)
    warm = 2 + (loading.prefetch + 1) * max(1, loading.processes() if loading.workers else 1)
    loader = train_batches(order, batch_size, 0, warm + batches + warm, loading)
    try:
        for _ in range(warm):
            next(loader)
        began = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return (time.perf_counter() - began) / batches / batch_size
    finally:
        loader.close()


def measure(config: Any, made: int, images: int, batch: int, batches: int) -> None:
    """Prints a table of the steps, then the whole pipeline's rate."""
    from adaperceiver_jax.train.feed import open_data, prepared

    source: Source
    fields: tuple[str, ...]
    if made:
        source, fields = MadePhotos(made), MadePhotos.fields
    else:
        opened = open_data(config.data)
        if opened.rendered:
            raise ValueError(
                "config.data.source='scenes': is rendered, not read; give a data set, or --made=256"
            )
        source, fields = opened.train.source, opened.train.fields
    preparation = prepared(config, fields, None)
    print(f"{source!r}, to {' x '.join(map(str, config.data.size))}")
    with on_cores(cores()[:1]):
        steps = time_steps(source, preparation, images)
        one = time_batches(source, preparation, batch, batches, Loading(threads=1, prefetch=1))
    print(f"\n{'one core, one thread':28}{'ms an image':>12}{'of it':>8}{'images/s':>10}")
    total, before = max(one, list(steps.values())[-1]), 0.0
    for name, seconds in {**steps, "whole pipeline": one}.items():
        share = (seconds - before) / total
        print(f"{name:28}{seconds * 1e3:12.3f}{share:8.1%}{1 / seconds:10.0f}")
        before = seconds
    loading = Loading(config.data.threads, config.data.workers, config.data.prefetch)
    rate = 1 / time_batches(source, preparation, batch, batches, loading)
    processes = loading.processes() if loading.workers else 0
    kind = ("process", "es") if processes else ("thread", "s")
    count = processes or loading.threads
    used = min(count, len(cores()))
    print(
        f"\nwhole pipeline, {plural(count, *kind)} on {used} of "
        f"{plural(len(cores()), 'core')}: {rate:.0f} images/s, {rate / used:.0f} a core"
    )
    print(f"batches of {batch}; {os.uname().machine}, {cpu()}")


def plural(count: int, name: str, ending: str = "s") -> str:
    """'1 core' or '2 cores'."""
    return f"{count} {name}{ending * (count != 1)}"


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


COUNTS = {
    "images": (512, "Images per step that is timed."),
    "batch": (128, "Images per batch."),
    "batches": (20, "Batches that the whole pipeline is timed with."),
}


def main(argv: list[str]) -> None:
    """Reads the config, measures, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    from adaperceiver_jax.tasks.make import RunConfig
    from adaperceiver_jax.train.settings import from_config

    given: Any = flags.FLAGS
    try:
        for name in COUNTS:
            if given[name].value < 1:
                raise ValueError(f"--{name}={given[name].value}: must be at least 1")
        config = from_config(RunConfig, given.config.to_dict())
        measure(config, given.made, given.images, given.batch, given.batches)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    flags.DEFINE_integer("made", 0, "Made-up photographs, in place of the config's data.")
    for name, (default, meaning) in COUNTS.items():
        flags.DEFINE_integer(name, default, meaning)
    flags.mark_flags_as_required(["config"])
    app.run(main)
