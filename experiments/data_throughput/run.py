"""Is the ImageNet pipeline fast, and is it built on the right libraries?

pip install torch torchvision timm opencv-python-headless simplejpeg kornia-rs    # what is there
python -m experiments.data_throughput.run                 # some 3 minutes on one core, 1 GB

Made-up photographs (500 x 375, 105 kB: see data/throughput.py) become batches of 128 images of 224
x 224: a random part cut out and resized, mirrored, RandAugment with 2 operations of magnitude 15,
on one core, in one thread. The pipelines take turns, and a ratio is of neighbours. Ours leaves
normalising to the device; torchvision's and timm's is measured with and without. Then decoding and
resizing alone, by each library: their times, and how far their pixels are from Pillow's.

Exits with 1 below 150 images/s, or below 1.5 x torchvision's or timm's with normalising.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import grain
import numpy as np
from PIL import Image

from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.geometry import resize
from adaperceiver_jax.data.loading import cores
from adaperceiver_jax.data.pipeline import TrainOrder
from adaperceiver_jax.data.throughput import MadePhotos, on_cores

BATCH, ROUNDS, SIZE = 128, 9, 224
LEAST, RATIO = 150, 1.5
OURS, REFERENCE = "ours", "torchvision v2, tensors, as the reference"
AS_USED = (REFERENCE, "torchvision v2, PIL images", "timm")
"""What must be that much slower: with normalising, which their users do there."""
Pipeline = Callable[[int], Any]
"""The number of a batch -> a batch."""


def ours(photos: MadePhotos) -> Pipeline:
    """What `main.py` trains with, but for the threads that run it ahead."""
    augment = AugmentSettings(crop=(0.08, 1.0), rand_augment=2, magnitude=15)
    preparation = Preparation(size=(SIZE, SIZE), inputs=("image", "label"), augment=augment)
    order = TrainOrder(photos, 0, preparation.train, tolerant=True)
    batches = grain.MapDataset.range(2**30).map(lambda i: order[int(i)]).batch(BATCH)
    return lambda number: batches[number]


def plain_pillow(photos: MadePhotos) -> Pipeline:
    """Decoded, cut, resized, stacked, nothing else."""
    rng = np.random.default_rng(0)

    def one(number: int) -> np.ndarray:
        image = Image.open(io.BytesIO(photos[number]["image"])).convert("RGB")
        left, top = rng.integers(0, 150), rng.integers(0, 100)
        part = image.crop((left, top, left + 350, top + 275))
        return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    return lambda number: np.stack([one(number * BATCH + i) for i in range(BATCH)])


def torch_pipelines(photos: MadePhotos) -> dict[str, Pipeline]:
    """torchvision's and timm's, if they are installed."""
    try:
        import torch

        library = torch.library.Library("torchvision", "DEF")  # where operators are not compiled
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library
        import torchvision.transforms.v2 as v2
    except ImportError:
        return {}
    torch.set_num_threads(1)

    def pipeline(transform: Any) -> Pipeline:
        def one(number: int) -> Any:
            return transform(Image.open(io.BytesIO(photos[number]["image"])).convert("RGB"))

        return lambda number: torch.stack([one(number * BATCH + i) for i in range(BATCH)])

    def augment() -> list[Any]:
        return [
            v2.RandomResizedCrop(SIZE),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=2, magnitude=15),
        ]

    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    found = {
        REFERENCE: v2.Compose([v2.ToImage(), *augment(), *normalise]),
        "torchvision v2, tensors, not normalised": v2.Compose([v2.ToImage(), *augment()]),
        "torchvision v2, PIL images": v2.Compose([*augment(), v2.ToImage(), *normalise]),
        "torchvision v2, PIL images, not normalised": v2.Compose([*augment(), v2.ToImage()]),
    }
    try:
        from timm.data import create_transform
    except ImportError:
        pass
    else:
        options = dict(auto_augment="rand-m5-n2", interpolation="bilinear", color_jitter=None)
        found["timm"] = create_transform(SIZE, is_training=True, **options)
    return {name: pipeline(transform) for name, transform in found.items()}


def compare(pipelines: dict[str, Pipeline]) -> dict[str, list[float]]:
    """Seconds an image of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_ in range(-1, ROUNDS):
        for name, pipeline in pipelines.items():
            began = time.perf_counter()
            pipeline(round_ + 1)
            if round_ >= 0:  # the first warms up
                times[name].append((time.perf_counter() - began) / BATCH)
    return times


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """A file -> pixels."""
    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)))
    }
    try:
        import cv2

        cv2.setNumThreads(0)
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except ImportError:
        pass
    try:
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
        found["simplejpeg, fast"] = lambda data: simplejpeg.decode_jpeg(
            data, fastdct=True, fastupsample=True
        )
    except ImportError:
        pass
    return found


def resizers() -> dict[str, Callable[[np.ndarray], Any]]:
    """Pixels -> SIZE x SIZE of them."""
    found: dict[str, Callable[[np.ndarray], Any]] = {
        "Pillow": lambda x: np.asarray(
            Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        ),
        "cykooz.resizer (ours)": lambda x: np.asarray(resize(Image.fromarray(x), (SIZE, SIZE))),
    }
    try:
        import cv2

        found["OpenCV, linear"] = lambda x: cv2.resize(x, (SIZE, SIZE))
        area = cv2.INTER_AREA
        found["OpenCV, area"] = lambda x: cv2.resize(x, (SIZE, SIZE), interpolation=area)
    except ImportError:
        pass
    try:
        from kornia_rs import imgproc

        found["kornia-rs"] = lambda x: np.asarray(imgproc.resize(x, (SIZE, SIZE), "bilinear"))
    except ImportError:
        pass
    return found


def one_by_one(functions: dict[str, Callable[[Any], Any]], inputs: list[Any], title: str) -> None:
    """Prints the time of each and its pixels' difference from the first's."""
    print(f"\n{title:28}{'ms':>8}{'largest difference from Pillow':>34}")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(ROUNDS + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            for x in inputs:
                function(x)
            if round_:
                times[name].append((time.perf_counter() - began) / len(inputs))
    wanted = [next(iter(functions.values()))(x).astype(int) for x in inputs]
    for name, function in functions.items():
        pairs = zip(inputs, wanted, strict=True)
        off = max(int(np.abs(np.asarray(function(x)).astype(int) - y).max()) for x, y in pairs)
        print(f"{name:28}{statistics.median(times[name]) * 1e3:8.3f}{off:34}")


def version(name: str) -> str:
    """'name 1.2', or that it is not there."""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


def main() -> int:
    photos = MadePhotos(256)
    named = ("pillow", "cykooz-resizer", "torch", "torchvision", "timm")
    named += ("opencv-python-headless", "simplejpeg", "kornia-rs")
    print(f"{photos!r}; batches of {BATCH}, one core, one thread")
    print(", ".join(map(version, named)))
    with on_cores(cores()[-1:]):
        pipelines = {OURS: ours(photos), "Pillow, cut and resized alone": plain_pillow(photos)}
        pipelines |= torch_pipelines(photos)
        times = compare(pipelines)
        print(f"\n{'':44}{'ms an image':>12}{'images/s':>10}{'ours is':>28}")
        medians = {}
        for name, taken in times.items():
            median = statistics.median(taken)
            ratios = [a / b for a, b in zip(taken, times[OURS], strict=True)]
            medians[name] = statistics.median(ratios)
            text = f"{medians[name]:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{name:44}{median * 1e3:12.3f}{1 / median:10.0f}{text:>28}")
        files = [photos[i]["image"] for i in range(32)]
        one_by_one(decoders(), files, "decoding 500 x 375")
        parts = [
            np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(x)))[20:320, 50:380])
            for x in files
        ]
        one_by_one(resizers(), parts, "resizing 330 x 300")
    rate = 1 / statistics.median(times[OURS])
    others = {name: medians[name] for name in AS_USED if name in medians}
    held = rate >= LEAST and all(ratio >= RATIO for ratio in others.values())
    against = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in others.items())
    print(
        f"\n{'Held' if held else 'NOT HELD'}: at least {LEAST} images/s a core ({rate:.0f}), and "
        f"{RATIO} x others as they are used:\n{against or 'none is installed'}."
    )
    return not held


if __name__ == "__main__":
    sys.exit(main())
