"""Random changes of an image's colours: brightness, contrast, saturation, hue."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

NAMES = ("brightness", "contrast", "saturation", "hue")


def adjust(image: Image.Image, name: str, amount: float) -> Image.Image:
    """One of NAMES; 1 changes nothing, but for the hue, of which 0 does and 0.5 is half a turn."""
    if name == "brightness":
        return ImageEnhance.Brightness(image).enhance(amount)
    if name == "contrast":
        return ImageEnhance.Contrast(image).enhance(amount)
    if name == "saturation":
        return ImageEnhance.Color(image).enhance(amount)
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.arange(256) + int(amount * 255)) % 256
    return Image.merge("HSV", (hue.point(turned.tolist()), saturation, value)).convert("RGB")


def jitter(image: Image.Image, rng: np.random.Generator, amounts: tuple[float, ...]) -> Image.Image:
    """All four in a random order, each by a factor uniform in 1 +- its amount (hue: 0 +-)."""
    for i in rng.permutation(len(NAMES)).tolist():
        amount = amounts[i]
        if not amount:
            continue
        if NAMES[i] == "hue":
            image = adjust(image, "hue", rng.uniform(-amount, amount))
        else:
            image = adjust(image, NAMES[i], rng.uniform(max(0.0, 1 - amount), 1 + amount))
    return image
