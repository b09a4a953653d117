"""Pre-processing: an image of any size to what a model was trained to look at."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, centre crop, (pixels / 255 - mean) / std; the defaults are AdaPerceiver's."""

    image_size: int = 224
    crop: float = 0.875
    """The part of the resized short side that the crop keeps: 224 of 256."""
    squash: bool = False
    """Resize to a square, whatever the image's shape, instead of its short side."""
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"interpolation={self.interpolation!r}: must be one of {', '.join(_FILTERS)}"
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop}: must be above 0, at most 1")

    def pixels(self, image: Any) -> np.ndarray:
        """A PIL image, or pixels (H, W, 3) uint8, -> (image_size, image_size, 3) uint8."""
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        image = image.convert("RGB")
        width, height = image.size
        size, short = math.floor(self.image_size / self.crop), min(image.size)
        resized = (size, size) if self.squash else (size * width // short, size * height // short)
        image = image.resize(resized, _FILTERS[self.interpolation])
        left, top = (round((side - self.image_size) / 2) for side in resized)
        image = image.crop((left, top, left + self.image_size, top + self.image_size))
        return np.asarray(image)

    def __call__(self, image: Any) -> np.ndarray:
        """A PIL image, or pixels (H, W, 3) uint8, -> (image_size, image_size, 3) float32."""
        pixels = self.pixels(image).astype(np.float32) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
