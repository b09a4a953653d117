"""RandAugment: some random operations an image, all of one strength (arXiv 1909.13719)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE
Matrix = tuple[float, float, float, float, float, float]
"""Where a pixel comes from: x = m[0] x + m[1] y + m[2], y = m[3] x + m[4] y + m[5]."""


def _move(image: Image.Image, matrix: Matrix) -> Image.Image:
    """By nearest pixels; what comes from outside is black."""
    return image.transform(image.size, AFFINE, matrix, NEAREST)


def _solarize(image: Image.Image, amount: float) -> Image.Image:
    """Values from this share of 255 on are inverted."""
    threshold = np.float32(255 * amount)  # 85 of bin 20 is 85 so, as it is for tensors
    return image.point([v if v < threshold else 255 - v for v in range(256)] * 3)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of them."""

    apply: Callable[[Image.Image, float], Image.Image]
    strongest: Callable[[int, int], float] = lambda height, width: 0.0
    """The amount of the last bin, for an image's height and width; that of the first is `weakest`,
    and those between are spread evenly."""
    weakest: float = 0.0
    signed: bool = False
    """The amount is negative half of the time."""
    whole: bool = False
    """Amounts are rounded to whole numbers."""

    def amount(self, magnitude: int, bins: int, height: int, width: int) -> float:
        """Of the bin `magnitude`, without its sign."""
        last = self.strongest(height, width)
        if self.whole:
            return round(self.weakest + (last - self.weakest) * magnitude / (bins - 1))
        first, last = float(np.float32(self.weakest)), float(np.float32(last))
        step = float((np.float32(last) - np.float32(first)) / np.float32(bins - 1))
        # From the nearer end, rounded once: so that not even the last bit is not torchvision's.
        if magnitude < bins // 2:
            return float(np.float32(first + step * magnitude))
        return float(np.float32(last - step * (bins - 1 - magnitude)))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return Operation(lambda x, a: kind(x).enhance(1 + a), lambda h, w: 0.9, signed=True)


OPERATIONS: dict[str, Operation] = {
    "Identity": Operation(lambda x, a: x),
    "ShearX": Operation(lambda x, a: _move(x, (1, a, 0, 0, 1, 0)), lambda h, w: 0.3, signed=True),
    "ShearY": Operation(lambda x, a: _move(x, (1, 0, 0, a, 1, 0)), lambda h, w: 0.3, signed=True),
    "TranslateX": Operation(
        lambda x, a: _move(x, (1, 0, -int(a), 0, 1, 0)), lambda h, w: 150 / 331 * w, signed=True
    ),
    "TranslateY": Operation(
        lambda x, a: _move(x, (1, 0, 0, 0, 1, -int(a))), lambda h, w: 150 / 331 * h, signed=True
    ),
    "Rotate": Operation(lambda x, a: x.rotate(a, NEAREST), lambda h, w: 30.0, signed=True),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": Operation(
        lambda x, a: ImageOps.posterize(x, int(a)), lambda h, w: 4.0, weakest=8.0, whole=True
    ),
    "Solarize": Operation(_solarize, lambda h, w: 0.0, weakest=1.0),
    "AutoContrast": Operation(lambda x, a: ImageOps.autocontrast(x)),
    "Equalize": Operation(lambda x, a: ImageOps.equalize(x)),
}


def rand_augment(
    image: Image.Image, rng: np.random.Generator, operations: int, magnitude: int, bins: int
) -> Image.Image:
    """`operations` of OPERATIONS, one after another, each drawn from all of them.

    Args:
      image: in RGB.
      rng: draws the operations and their signs.
      operations: how many.
      magnitude: the bin of all their amounts, from 0.
      bins: how many there are.
    """
    names = list(OPERATIONS)
    for _ in range(operations):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        amount = operation.amount(magnitude, bins, image.height, image.width)
        if operation.signed and rng.random() < 0.5:
            amount = -amount
        image = operation.apply(image, amount)
    return image
