"""What torchvision makes of a small image, for tests/data/test_transforms.py, which reads it.

pip install torch torchvision; python -m tests.data.torchvision_tables     # writes torchvision.npz

Made with torchvision 0.28.0, PyTorch 2.13.0 and Pillow 13.0.0. `pil` is its transforms' result for
a PIL image, `tensor` that for a tensor.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).with_name("torchvision.npz")
BINS = (0, 7, 15, 20, 30)
JITTER = {
    "brightness": (0.75, 1.1, 1.25),
    "contrast": (0.75, 1.1, 1.25),
    "saturation": (0.75, 1.1, 1.25),
    "hue": (-0.2, 0.05, 0.2),
}
CROPS = ((0, 0, 25, 19), (3, 2, 20, 16), (5, 4, 9, 9))
"""Left, top, right, bottom; resized to SIZE."""
SIZE = (12, 10)
"""Height and width."""
DEGREES = (-2.5, 1.3, 10.0)


def picture() -> Image.Image:
    """Smooth colours with some noise: 19 x 25."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:19, :25]
    waves = [120 + 90 * np.sin(x / (3 + c) + y / (5 - c)) for c in range(3)]
    image = np.stack(waves, -1) + rng.normal(0, 12, (19, 25, 3))
    return Image.fromarray(np.clip(image, 20, 235).astype(np.uint8))


def main() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # where its operators are not compiled
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.transforms.v2 as transforms
    import torchvision.transforms.v2.functional as F

    tables = {}
    image = picture()
    tensor = F.pil_to_tensor(image)

    def add(name, function):
        tables[f"pil:{name}"] = np.asarray(function(image))
        out = function(tensor)
        tables[f"tensor:{name}"] = out.permute(1, 2, 0).numpy()

    for operation, (amounts, signed) in transforms.RandAugment._AUGMENTATION_SPACE.items():
        values = amounts(31, image.height, image.width)
        for magnitude in BINS if values is not None else (0,):
            for sign in (1, -1) if signed else (1,):
                amount = 0.0 if values is None else sign * float(values[magnitude])
                augment = transforms.RandAugment()
                augment._fill = {}
                apply = partial(
                    augment._apply_image_or_video_transform,
                    transform_id=operation,
                    magnitude=amount,
                    interpolation=augment.interpolation,
                    fill={},
                )
                tables[f"amount:{operation},{magnitude},{sign}"] = np.float64(amount)
                add(f"{operation},{magnitude},{sign}", apply)
    for name, factors in JITTER.items():
        adjust = getattr(F, f"adjust_{name}")
        for factor in factors:
            add(f"{name},{factor}", lambda x, adjust=adjust, factor=factor: adjust(x, factor))
    for box in CROPS:
        left, top, right, bottom = box
        part = dict(top=top, left=left, height=bottom - top, width=right - left)
        add(f"crop,{box}", partial(F.resized_crop, **part, size=list(SIZE), antialias=True))
    bilinear = transforms.InterpolationMode.BILINEAR
    for degrees in DEGREES:
        add(f"rotate,{degrees}", partial(F.rotate, angle=degrees, interpolation=bilinear))
    add("mirror", F.horizontal_flip)
    np.savez_compressed(FILE, **tables)
    print(f"{FILE}: {len(tables)} tables, {FILE.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
