"""Writes a contact sheet of the scenes: each image over its class map and its depth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw

from adaperceiver_jax.data.scenes import CLASSES, DIFFICULTY, SPLITS, Scenes

COLOURS = np.array(
    [
        (32, 32, 32),
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (67, 99, 216),
        (245, 130, 49),
        (145, 30, 180),
        (66, 212, 244),
        (240, 50, 230),
        (191, 239, 69),
        (250, 190, 212),
    ],
    np.uint8,
)
CAPTION = 12


def sheet(scenes: Scenes, columns: int, zoom: int, first: int = 0) -> Image.Image:
    """Scenes `first` to the last, `columns` a row; each pixel is shown as zoom x zoom."""
    cell, rows = scenes.size * zoom, -(-(len(scenes) - first) // columns)
    tall = 3 * cell + CAPTION
    page = Image.new("RGB", (columns * (cell + 4), rows * (tall + 4)), "white")
    text = ImageDraw.Draw(page)
    for i in range(first, len(scenes)):
        item = scenes[i]
        left, top = (i - first) % columns * (cell + 4), (i - first) // columns * (tall + 4)
        text.text((left, top), f"{i} {CLASSES[item['label']]}", fill="black")
        # Near is bright; by the logarithm, else the wall takes most of the range.
        near = 255 * (1 - np.log1p(item["depth"]) / np.log1p(10))
        grey = np.repeat(near.astype(np.uint8)[..., None], 3, axis=-1)
        for row, picture in enumerate((item["image"], COLOURS[item["segmentation"]], grey)):
            large = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
            page.paste(Image.fromarray(large), (left, top + CAPTION + row * cell))
    return page


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="scenes.png", help="the PNG to write")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="pixels a side, as rendered")
    parser.add_argument("--zoom", type=int, default=2, help="times the size, as shown")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=float, default=DIFFICULTY, help="0 to 1")
    args = parser.parse_args(argv)
    scenes = Scenes(args.count, args.size, args.split, args.seed, args.difficulty)
    sheet(scenes, args.columns, args.zoom).save(args.out)
    print(f"{args.out}: {args.count} scenes at {args.size} pixels")


if __name__ == "__main__":
    main()
