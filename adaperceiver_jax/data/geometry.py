"""Cutting, resizing, turning, mirroring: an image smoothly, a map beside it by nearest pixels."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

try:
    import cykooz_resizer

    _OPTIONS = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear), use_alpha=False
    )
    _resizer = cykooz_resizer.Resizer()
except ImportError:  # Pillow's own resizing is 5 times slower and differs by one grey level at most
    cykooz_resizer = None

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""
TRIES = 10


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right, bottom.

    Its share of the area is uniform in `scale`, its width over its height log-uniform in `ratio`.
    If ten draws do not fit, the largest part in the middle whose proportions `ratio` allows.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(rng.integers(height - tall + 1))
            left = int(rng.integers(width - wide + 1))
            return left, top, left + wide, top + tall
    wide, tall = width, height
    if width / height < ratio[0]:
        tall = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """The part `box` of an RGB image at height x width: bilinear, antialiased."""
    height, width = size
    if box is not None and box != (0, 0, *image.size):
        image = image.crop(box)
    if image.size == (width, height):
        return image
    if cykooz_resizer is None:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    out = Image.new("RGB", (width, height))
    _resizer.resize_pil(image, out, _OPTIONS)
    return out


def resize_map(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Likewise of a map (mode L, I or F): each pixel is one of the map's, nothing is blended."""
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST, box=box)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """An RGB image turned about its centre, counter-clockwise; what comes from outside is black."""
    return image.rotate(degrees, Image.Resampling.BILINEAR)


def rotate_map(image: Image.Image, degrees: float, outside: float) -> Image.Image:
    """Likewise of a map, by nearest pixels; `outside` is the value of what it did not show."""
    return image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=outside)


def mirror(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
