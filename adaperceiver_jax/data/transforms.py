"""Changes of an image and its maps: cut, resized, turned, mirrored, recoloured; RandAugment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

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
NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, ...],
    ratio: tuple[float, ...],
) -> Box:
    """A random part of an image.

    Its share of the area is uniform in `scale`, its width over its height log-uniform in `ratio`.
    If ten draws do not fit, the largest part in the middle whose proportions `ratio` allows.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        area = height * width * rng.uniform(scale[0], scale[1])
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
        return image.resize((width, height), BILINEAR)
    out = Image.new("RGB", (width, height))
    _resizer.resize_pil(image, out, _OPTIONS)
    return out


def resize_map(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """The same of a map (mode L, I or F) by nearest pixels: nothing is blended."""
    return image.resize((size[1], size[0]), NEAREST, box=box)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """An RGB image turned about its centre, counter-clockwise; what comes from outside is black."""
    return image.rotate(degrees, BILINEAR)


def rotate_map(image: Image.Image, degrees: float, outside: float) -> Image.Image:
    """The same of a map by nearest pixels; `outside` is the value of what it did not show."""
    return image.rotate(degrees, NEAREST, fillcolor=outside)


def mirror(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COLOURS = ("brightness", "contrast", "saturation", "hue")


def adjust(image: Image.Image, name: str, amount: float) -> Image.Image:
    """Changes one of COLOURS: 1 changes nothing, but for the hue, where 0 does and 0.5 is half a
    turn."""
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
    """Changes all four in a random order, by factors uniform in 1 +- their amounts (hue: 0 +-)."""
    for i in rng.permutation(len(COLOURS)).tolist():
        amount = amounts[i]
        if not amount:
            continue
        low, high = max(0.0, 1 - amount), 1 + amount
        if COLOURS[i] == "hue":
            low, high = -amount, amount
        image = adjust(image, COLOURS[i], rng.uniform(low, high))
    return image


# RandAugment: some random operations per image, all of one strength (arXiv 1909.13719).


def _move(image: Image.Image, *matrix: float) -> Image.Image:
    """Moves an image by nearest pixels; what comes from outside is black.

    A pixel (x, y) comes from x = m[0] x + m[1] y + m[2], y = m[3] x + m[4] y + m[5].
    """
    return image.transform(image.size, Image.Transform.AFFINE, matrix, NEAREST)


def _solarize(image: Image.Image, amount: float) -> Image.Image:
    """Values from this share of 255 on are inverted."""
    threshold = np.float32(255 * amount)  # 85 of bin 20 is 85 so, as it is for tensors
    return image.point([v if v < threshold else 255 - v for v in range(256)] * 3)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of RandAugment."""

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
        """The amount of the bin `magnitude`, without its sign."""
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
    "ShearX": Operation(lambda x, a: _move(x, 1, a, 0, 0, 1, 0), lambda h, w: 0.3, signed=True),
    "ShearY": Operation(lambda x, a: _move(x, 1, 0, 0, a, 1, 0), lambda h, w: 0.3, signed=True),
    "TranslateX": Operation(
        lambda x, a: _move(x, 1, 0, -int(a), 0, 1, 0), lambda h, w: 150 / 331 * w, signed=True
    ),
    "TranslateY": Operation(
        lambda x, a: _move(x, 1, 0, 0, 0, 1, -int(a)), lambda h, w: 150 / 331 * h, signed=True
    ),
    "Rotate": Operation(lambda x, a: x.rotate(a, NEAREST), lambda h, w: 30.0, signed=True),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": Operation(
        lambda x, a: ImageOps.posterize(x, int(a)), lambda h, w: 4.0, weakest=8.0, whole=True
    ),
    "Solarize": Operation(_solarize, weakest=1.0),
    "AutoContrast": Operation(lambda x, a: ImageOps.autocontrast(x)),
    "Equalize": Operation(lambda x, a: ImageOps.equalize(x)),
}


def rand_augment(
    image: Image.Image, rng: np.random.Generator, operations: int, magnitude: int, bins: int
) -> Image.Image:
    """An RGB image after `operations` of OPERATIONS, each drawn from all of them.

    magnitude: the bin of all their amounts, of 0 to `bins` - 1.
    """
    names = list(OPERATIONS)
    for _ in range(operations):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        amount = operation.amount(magnitude, bins, image.height, image.width)
        if operation.signed and rng.random() < 0.5:
            amount = -amount
        image = operation.apply(image, amount)
    return image
