"""How fast images are made ready, and where the time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.decode import decode, read_image, reduce
from adaperceiver_jax.data.geometry import draw_crop
from adaperceiver_jax.data.loading import Loading, cores
from adaperceiver_jax.data.pipeline import TrainOrder, train_batches
from adaperceiver_jax.data.sample import Sample, Source
from adaperceiver_jax.data.scenes import Scenes

HEIGHT, WIDTH = 375, 500
"""Of made-up photographs: ImageNet's most frequent size."""
LENGTH = 1_281_167
GRAIN = 8.0
"""Noise, in grey levels, that gives files of ImageNet's size: some 105 kB."""


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """One more step that an image goes through."""

    name: str
    seconds: float
    """An image's, of this step and all before it: the median of the rounds."""


@contextlib.contextmanager
def on_cores(wanted: list[int]) -> Iterator[None]:
    """Keeps this process, and what it starts, on these cores."""
    before = cores()
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stages_of(preparation: Preparation) -> dict[str, Callable[[Sample, np.random.Generator], Any]]:
    """Functions of an encoded sample: each does what the one before it does, and one thing more."""
    a, done = preparation.augment, AugmentSettings(flip=False)

    def decoded(sample: Sample, rng: np.random.Generator) -> Image.Image:
        """As large as the part that will be cut out of it asks for."""
        image = read_image(sample["image"], sample["name"])
        left, top, right, bottom = 0, 0, *image.size
        if a.crop:
            scale, ratio = (a.crop[0], a.crop[1]), (a.crop_ratio[0], a.crop_ratio[1])
            left, top, right, bottom = draw_crop(rng, image.height, image.width, scale, ratio)
        if not a.rotation:
            reduce(image, (right - left, bottom - top), preparation.size[::-1])
        return decode(image, sample["name"])

    steps: dict[str, Callable[[Sample, np.random.Generator], Any]] = {"decoded": decoded}
    sums = {
        "turned": ("rotation",),
        "cut and resized" if a.crop else "resized": ("crop", "crop_ratio"),
        "mirrored": ("flip",),
        "RandAugment": ("rand_augment", "magnitude", "bins"),
        "colours changed": ("jitter",),
    }
    for name, fields in sums.items():
        if not getattr(a, fields[0]) and "resized" not in name:
            continue
        done = dataclasses.replace(done, **{field: getattr(a, field) for field in fields})
        steps[name] = dataclasses.replace(preparation, augment=done).train
    return steps


def time_stages(
    source: Source, preparation: Preparation, images: int, rounds: int = 5
) -> list[Stage]:
    """Reading, decoding and every step of the preparation, one after another, in one thread."""
    steps = stages_of(preparation)
    chosen = [i % len(source) for i in range(images)]
    taken: dict[str, list[float]] = {name: [] for name in ("read", *steps)}
    for round_ in range(rounds + 1):
        began = time.perf_counter()
        samples = [source[i] for i in chosen]
        read = time.perf_counter() - began
        if round_:  # the first warms up
            taken["read"].append(read)
        for name, step in steps.items():
            began = time.perf_counter()
            for i, sample in enumerate(samples):
                step(sample, np.random.default_rng((0, i)))
            if round_:
                taken[name].append(read + time.perf_counter() - began)
    return [Stage(name, statistics.median(times) / images) for name, times in taken.items()]


def time_batches(
    source: Source, preparation: Preparation, batch_size: int, batches: int, loading: Loading
) -> float:
    """Seconds an image of the whole pipeline: shuffled, prepared, batched, handed over."""
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
