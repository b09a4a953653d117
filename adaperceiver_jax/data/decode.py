"""Bytes of a file to an image, a map of labels or a map of depths."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

SPARE = 2
"""A JPEG is decoded at a half, a quarter or an eighth only while what is cut out of it stays this
many times as large as what it is resized to: then no difference is seen."""
IGNORED = 255
"""The label of a pixel that does not count."""
NUMPY = b"\x93NUMPY"


class BadImageError(ValueError):
    """A file that does not decode; says which, and why."""


def read_image(data: bytes, name: str) -> Image.Image:
    """The image of a file, its pixels not decoded yet."""
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:
        raise _bad(name, error) from error


def reduce(image: Image.Image, part: tuple[int, int], size: tuple[int, int]) -> int:
    """Has a JPEG decode at a fraction, where that is enough for a part of it that is resized.

    Args:
      image: as `read_image` gives it.
      part: width and height of what is cut out, in pixels of the whole image.
      size: width and height that it is resized to.

    Returns:
      How many pixels of the whole image, each way, one stands for: 1, 2, 4 or 8.
    """
    room = min(n / (SPARE * m) for n, m in zip(part, size, strict=True))
    if image.format != "JPEG" or room < 2:
        return 1
    factor = 2 ** min(3, math.floor(math.log2(room)))
    image.draft("RGB", (image.width // factor, image.height // factor))
    return factor


def decode(image: Image.Image, name: str) -> Image.Image:
    """The image in RGB, its pixels there; BadImageError if it is damaged or cut short."""
    try:
        image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("holds numbers of 32 bits, not colours of 8 or 16")
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        raise _bad(name, error) from error


def label_map(data: Any, name: str) -> Image.Image:
    """Class numbers (mode L or I) of a PNG of numbers or of a palette, or of an array (H, W).

    name: of the image they are of."""
    name = f"the annotation of {name}"
    array = _array(data, name)
    if array.ndim == 3:
        colours = array[..., : 3 if array.shape[-1] > 2 else 1]  # the last may be transparency
        if (colours != array[..., :1]).any():
            raise BadImageError(f"{name} is in colours; give one of class numbers, a grey PNG")
        array = array[..., 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    return Image.fromarray(array if array.dtype == np.uint8 else array.astype(np.int32))


def depth_map(data: Any, name: str, scale: float) -> Image.Image:
    """Metres (mode F) of a PNG of whole numbers, `scale` a metre, of a .npy or an array (H, W).

    name: of the image they are of."""
    name = f"the depth of {name}"
    array = _array(data, name)
    if np.issubdtype(array.dtype, np.integer):
        array = array / scale
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise _bad(name, ValueError(f"it has shape {array.shape}, not (height, width)"))
    array = array.astype(np.float32)
    array[~np.isfinite(array)] = 0  # a hole
    return Image.fromarray(array)


def _array(data: Any, name: str) -> np.ndarray:
    """The array of a .npy or an image, both as bytes, or what is one already."""
    try:
        if isinstance(data, bytes) and data.startswith(NUMPY):
            return np.load(io.BytesIO(data), allow_pickle=False)
        return np.asarray(Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data)
    except Exception as error:
        raise _bad(name, error) from error


def _bad(name: str, error: Exception) -> BadImageError:
    what = str(error).partition("\n")[0]
    if "cannot identify image file" in what:
        what = "is no image"
    elif "truncated" in what.lower():
        what = "is cut short"
    return BadImageError(f"{name}: cannot be decoded: {what}")
