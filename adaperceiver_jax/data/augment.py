"""Preparation of an image before it is batched: random for training, fixed for evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from adaperceiver_jax.data import transforms
from adaperceiver_jax.data.decode import (
    IGNORED,
    BadImageError,
    decode,
    depth_map,
    label_map,
    read_image,
    reduce,
)
from adaperceiver_jax.data.preprocess import Preprocessing
from adaperceiver_jax.data.sample import Sample
from adaperceiver_jax.data.transforms import Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Changes of training images, in this order; what is 0 or () is left out."""

    rotation: float = 0.0
    """Largest angle, in degrees, by which an image is turned either way."""
    crop: tuple[float, ...] = ()
    """A random part is cut out: the smallest and largest share of the area. () takes the whole
    image, and evaluation then resizes it whole too."""
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of that part."""
    flip: bool = True
    """Mirrored, left to right, half of the time."""
    rand_augment: int = 0
    """Number of RandAugment's operations per image."""
    magnitude: int = 15
    """Strength of RandAugment's operations: a bin, from 0."""
    bins: int = 31
    jitter: tuple[float, ...] = ()
    """Largest changes of brightness, contrast, saturation and hue."""
    evaluation_crop: float = 0.875
    """Part of the resized short side that evaluation keeps where training cuts: 224 of 256."""

    def __post_init__(self) -> None:
        def check(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise ValueError(f"config.augment.{name}={getattr(self, name)}: must be {allowed}")

        crop, ratio, amounts = self.crop, self.crop_ratio, self.jitter
        check("rotation", 0 <= self.rotation <= 180, "in [0, 180]")
        good = not crop or (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1)
        check("crop", good, "() or two shares of the area, the smaller first, above 0 and up to 1")
        good = len(ratio) == 2 and 0 < ratio[0] <= ratio[1]
        check("crop_ratio", good, "two ratios above 0, the smaller first")
        check("rand_augment", self.rand_augment >= 0, "at least 0")
        check("bins", self.bins >= 2, "at least 2")
        check("magnitude", 0 <= self.magnitude < self.bins, f"in 0..{self.bins - 1}")
        good = len(amounts) == len(transforms.COLOURS) and min(amounts) >= 0 and amounts[-1] <= 0.5
        allowed = f"() or four numbers ({', '.join(transforms.COLOURS)}), the hue's up to 0.5"
        check("jitter", not amounts or good, allowed)
        check("evaluation_crop", 0 < self.evaluation_crop <= 1, "above 0, up to 1")


MAPS = ("segmentation", "depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Makes of a source's samples those of a batch, which hold the names of `inputs` alone.

    image (H, W, 3) uint8; label int32; segmentation (H, W), 255 where it does not count; depth
    (H, W) float32 in metres and valid (H, W) bool, where there is one.
    """

    size: tuple[int, int]
    """Height and width."""
    inputs: tuple[str, ...] = ("image", "label")
    augment: AugmentSettings = AugmentSettings()
    num_classes: int | None = None
    """Labels must be below it; None takes any."""
    zero_is_ignored: bool = False
    """Label maps like ADE20K's, where 0 does not count and class k is written as k + 1."""
    depth_scale: float = 1000.0
    """Units per metre of depth that is written in whole numbers."""
    max_depth: float = 10.0
    """Largest valid depth, in metres."""

    def __post_init__(self) -> None:
        if self.augment.crop and not self._maps and self.size[0] != self.size[1]:
            raise ValueError(
                f"config.data.image_width={self.size[1]}: evaluation cuts a square, of image_size="
                f"{self.size[0]}; take that, or whole images (config.augment.crop=())"
            )

    @property
    def _maps(self) -> tuple[str, ...]:
        return tuple(name for name in MAPS if name in self.inputs)

    def train(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Augmented by `rng`, which is the sample's own."""
        a = self.augment
        plain = not (a.rotation or a.crop or a.rand_augment or any(a.jitter))
        if plain and self._is_made(sample):
            kinds = self._kinds(sample) if a.flip and rng.random() >= 0.5 else []
            flipped = {kind: np.ascontiguousarray(sample[kind][:, ::-1]) for kind in kinds}
            return self._finish(sample, flipped)
        image, maps = self._open(sample)
        turn = rng.uniform(-a.rotation, a.rotation) if a.rotation else 0.0
        box: Box = (0, 0, *image.size)
        if a.crop:
            box = transforms.draw_crop(rng, image.height, image.width, a.crop, a.crop_ratio)
        flip = a.flip and rng.random() >= 0.5
        image = self._shown(image, _name(sample), turn, box)
        for kind, x in maps.items():
            if turn:
                x = transforms.rotate_map(x, turn, IGNORED if kind == "segmentation" else 0)
            maps[kind] = transforms.resize_map(x, self.size, box)
        if flip:
            image = transforms.mirror(image)
            maps = {kind: transforms.mirror(x) for kind, x in maps.items()}
        if a.rand_augment:
            image = transforms.rand_augment(image, rng, a.rand_augment, a.magnitude, a.bins)
        if any(a.jitter):
            image = transforms.jitter(image, rng, a.jitter)
        return self._finish(sample, {"image": image, **maps})

    def own_size(self, sample: Sample) -> Sample:
        """The same as `evaluate`, and the maps at their own size under 'own_' + name."""
        _, maps = self._open(sample)
        own = dataclasses.replace(self, inputs=self._maps)._finish(sample, dict(maps))
        return {**self.evaluate(sample), **{f"own_{name}": x for name, x in own.items()}}

    def evaluate(self, sample: Sample) -> Sample:
        """The same every time: the middle (as `Preprocessing` cuts it), or all of it, resized."""
        if self._is_made(sample) and not self.augment.crop:
            return self._finish(sample, {})
        image, maps = self._open(sample)
        image = decode(image, _name(sample))
        if self.augment.crop and not self._maps:
            cut = Preprocessing(image_size=self.size[0], crop=self.augment.evaluation_crop)
            return self._finish(sample, {"image": cut.pixels(image)})
        maps = {kind: transforms.resize_map(x, self.size) for kind, x in maps.items()}
        return self._finish(sample, {"image": transforms.resize(image, self.size), **maps})

    def _is_made(self, sample: Sample) -> bool:
        """True if image and maps are arrays of the size that is wanted."""
        made = (sample[kind] for kind in self._kinds(sample))
        return all(isinstance(x, np.ndarray) and x.shape[:2] == self.size for x in made)

    def _kinds(self, sample: Sample) -> list[str]:
        """The names of what has a height and a width."""
        return [kind for kind in ("image", *MAPS) if kind in self.inputs and kind in sample]

    def _open(self, sample: Sample) -> tuple[Image.Image, dict[str, Image.Image]]:
        """The image, its pixels not decoded, and its maps."""
        image, name = sample["image"], _name(sample)
        image = read_image(image, name) if isinstance(image, bytes) else Image.fromarray(image)
        maps = {}
        if "segmentation" in self.inputs:
            maps["segmentation"] = label_map(sample["segmentation"], name)
        if "depth" in self.inputs:
            maps["depth"] = depth_map(sample["depth"], name, self.depth_scale)
        for kind, x in maps.items():
            if x.size != image.size:
                raise BadImageError(
                    f"{name}: its {kind} is {x.height} x {x.width}, the image {image.height} x "
                    f"{image.width}"
                )
        return image, maps

    def _shown(self, image: Image.Image, name: str, turn: float, box: Box) -> Image.Image:
        """The part `box` of an image, turned first, at the size that is wanted."""
        if turn:
            return transforms.resize(transforms.rotate(decode(image, name), turn), self.size, box)
        left, top, right, bottom = box
        factor = reduce(image, (right - left, bottom - top), self.size[::-1])
        left, top, right, bottom = (round(edge / factor) for edge in box)
        return transforms.resize(decode(image, name), self.size, (left, top, right, bottom))

    def _finish(self, sample: Sample, made: dict[str, Any]) -> Sample:
        """The arrays of `inputs`, their labels checked."""
        name = _name(sample)
        out = {n: np.asarray(made.get(n, sample[n])) for n in self.inputs}
        if "segmentation" in out:
            out["segmentation"] = self._labels(out["segmentation"], name)
        if "depth" in out:
            depth = out["depth"].astype(np.float32)
            valid = (depth > 0) & (depth <= self.max_depth)
            out |= {"depth": np.where(valid, depth, np.float32(0)), "valid": valid}
        if "label" in out:
            out["label"] = out["label"].astype(np.int32)
            check_label(int(out["label"]), self.num_classes, name)
        return out

    def _labels(self, labels: np.ndarray, name: str) -> np.ndarray:
        """A label map in which 255 does not count."""
        if self.zero_is_ignored:
            uncounted = (labels == 0) | (labels == IGNORED)
            labels = np.where(uncounted, IGNORED, labels.astype(np.int32) - 1)
        counted = labels[labels != IGNORED]
        if counted.size:
            check_label(int(counted.min()), self.num_classes, name)
            check_label(int(counted.max()), self.num_classes, name)
        return labels if labels.max(initial=0) > 255 else labels.astype(np.uint8)


def check_label(label: int, num_classes: int | None, name: str) -> None:
    """ValueError for a label that is not one of the classes."""
    if label < 0 or (num_classes is not None and label >= num_classes):
        allowed = "at least 0" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"{name}: its label is {label}; must be {allowed}. Do the model's classes fit "
            "the data set?"
        )


def _name(sample: Sample) -> str:
    """The image's name for errors; rendered ones have none."""
    return sample.get("name", "an image")
