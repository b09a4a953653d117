"""Pictures of dense predictions: an image, and beside it the map that each budget predicts."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.evaluate.dense_metrics import BAND, own_classes, own_depth
from adaperceiver_jax.models.dense import DepthOutput, SegmentationOutput

PANEL, NARROWEST = 3.2, 3.0
"""Inches: the longer side of a panel, and the least room across that its title and legend need."""
GAP, TITLE, ENTRY, BAR = 0.2, 0.46, 0.15, 0.6
"""Inches: between panels, above each, of a legend's line, of the colour bar and its numbers."""
DPI = 150
PANELS = 5
"""Panels per row; more go on below."""
STRENGTH = 0.6
"""Opacity of a class's colour over the grey image."""
LEVELS, LIGHTNESS = 16, (0.5, 0.9)
"""Number of levels of red, green and blue that colours are chosen from, neither dark nor white."""
TOP, ENTRIES = 5, 10
"""Largest number of classes in a line of text, and in a legend."""
LETTERS, TWO_COLUMNS = 30, 19
"""Largest number of letters of a name, and of a line in legends of two columns."""


@functools.cache
def palette(count: int) -> np.ndarray:
    """Colours of the classes 0, 1, ..., (count, 3) uint8.

    Class 0 is dark grey; each further one is, of a grid of colours, the farthest from all before
    it, so a class has the same colour whatever the count.
    """
    axis = np.linspace(0, 255, LEVELS)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    light = _oklab(grid)[:, 0]
    fits = (np.ptp(grid, axis=1) > 50) & (light > LIGHTNESS[0]) & (light < LIGHTNESS[1])
    grid = np.concatenate([[(70, 70, 70)], grid[fits]])
    places = _oklab(grid)
    chosen, distance = [0], np.full(len(grid), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((places - places[chosen[-1]]) ** 2).sum(-1))
        chosen.append(int(distance.argmax()))
    return grid[chosen].round().astype(np.uint8)


def _oklab(colours: np.ndarray) -> np.ndarray:
    """sRGB, 0 to 255 -> Oklab (Ottosson, 2020), in which distances are as they are seen."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_cones = np.array([
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ])  # fmt: skip
    to_lab = np.array([
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ])  # fmt: skip
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


def own_size(out: SegmentationOutput | DepthOutput, size: tuple[int, int]) -> np.ndarray:
    """The prediction for one image at its own height and width: class numbers, or metres.

    Logits are resized (bilinear), not the classes.
    """
    height, width = size
    padded, sizes = (-(-height // BAND) * BAND, width), jnp.array([size])
    if isinstance(out, SegmentationOutput):
        return np.asarray(_own_classes(out.logits[:1], sizes, padded))[0, :height]
    return np.asarray(_own_depth(out.depth[:1, ..., None], sizes, padded))[0, :height]


_own_classes, _own_depth = (jax.jit(f, static_argnums=2) for f in (own_classes, own_depth))


def shares(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Each class's part of the pixels, (num_classes,)."""
    return np.bincount(classes.ravel(), minlength=num_classes) / classes.size


def percent(part: float) -> str:
    """'12.3%'; '<0.1%' for the least that is there."""
    return "<0.1%" if 0 < part < 0.0005 else f"{100 * part:.1f}%"


def largest(parts: np.ndarray, names: Sequence[str]) -> str:
    """'81.2% cat, 7.0% dog, ...'"""
    best = [k for k in np.argsort(-parts, kind="stable")[:TOP] if parts[k]]
    return ", ".join(f"{percent(parts[k])} {names[k]}" for k in best)


def summary(found: np.ndarray, classes: Sequence[str]) -> str:
    """The largest classes, or the least, mean and most metres where there are no classes."""
    if classes:
        return largest(shares(found, len(classes)), classes)
    return f"min {found.min():.3f}, mean {found.mean():.3f}, max {found.max():.3f}"


def overlay(image: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """The colour of each pixel's class over the image in grey.

    Args:
      image: (H, W, 3) uint8.
      classes: (H, W), below num_classes.
    """
    grey = image.mean(-1, keepdims=True, dtype=np.float32)
    mixed = (1 - STRENGTH) * grey + STRENGTH * palette(num_classes)[classes].astype(np.float32)
    return mixed.round().astype(np.uint8)


def draw(
    name: str,
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    classes: Sequence[str],
) -> bytes:
    """A PNG: the image, and beside it, under each title, a map of classes or of metres.

    Args:
      name: the image's.
      image: (H, W, 3) uint8.
      maps: (H, W) each: class numbers, or metres.
      titles: one per map.
      classes: their names; () where maps are of metres.
    """
    if classes:
        figure = _segmentation(name, image, maps, titles, classes)
    else:
        figure = _depth(name, image, maps, titles)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _segmentation(
    name: str,
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    classes: Sequence[str],
) -> Any:
    """Classes in their colours, with a legend of those that are there and their shares."""
    parts = [shares(labels, len(classes)) for labels in maps]
    order = np.argsort(-np.sum(parts, axis=0), kind="stable")  # the same in every legend
    legends = [_entries(part, order, classes) for part in parts]
    longest = max(len(text) for legend in legends for _, text in legend)
    columns = 2 if longest <= TWO_COLUMNS else 1
    lines = -(-max(map(len, legends)) // columns)
    figure, panels = _panels(name, image, titles, below=lines * ENTRY + 0.1)
    for axes, labels, legend in zip(panels, maps, legends, strict=True):
        axes.imshow(overlay(image, labels, len(classes)))
        _add_legend(axes, legend, columns)
    return figure


def _depth(name: str, image: np.ndarray, maps: Sequence[np.ndarray], titles: Sequence[str]) -> Any:
    """One scale of colours for all, and its bar."""
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    figure, panels = _panels(name, image, titles, right=BAR)
    for axes, depth in zip(panels, maps, strict=True):
        shown = axes.imshow(depth, cmap="magma_r", vmin=low, vmax=high)  # near is bright
    width, height = figure.get_size_inches()
    box = ((width - BAR) / width, GAP / height, 0.12 / width, (height - GAP - TITLE) / height)
    bar = figure.colorbar(shown, cax=figure.add_axes(box))
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=8)
    bar.ax.set_title("metres", fontsize=8)
    return figure


def _panels(
    name: str, image: np.ndarray, titles: Sequence[str], below: float = 0.0, right: float = 0.0
) -> tuple[Any, list[Any]]:
    """A figure that shows the image, and an empty panel of its shape under each title.

    below, right: inches to leave under each panel, and beside all of them.
    """
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    tall, wide = (PANEL * side / max(height, width) for side in (height, width))
    room = max(wide, NARROWEST)
    columns = min(PANELS, 1 + len(titles))
    rows = -(-(1 + len(titles)) // columns)
    across = GAP + columns * (room + GAP) + right
    down = rows * (TITLE + tall + below + GAP)
    figure = Figure(figsize=(across, down))
    panels = []
    for i, title in enumerate((f"{_short(name)}\n{width} x {height}", *titles)):
        left = GAP + i % columns * (room + GAP) + (room - wide) / 2
        top = (i // columns) * (TITLE + tall + below + GAP) + TITLE
        box = (left / across, (down - top - tall) / down, wide / across, tall / down)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9, parse_math=False)
        panels.append(axes)
    panels[0].imshow(image)
    return figure, panels[1:]


def _entries(part: np.ndarray, order: np.ndarray, names: Sequence[str]) -> list[tuple[Any, str]]:
    """A legend's colours and texts."""
    there, colours = [int(k) for k in order if part[k]], palette(len(names)) / 255
    shown = there if len(there) <= ENTRIES else there[: ENTRIES - 1]
    entries: list[tuple[Any, str]] = [
        (colours[k], f"{_short(names[k])} {percent(part[k])}") for k in shown
    ]
    if rest := there[len(shown) :]:
        entries.append(("none", f"{len(rest)} more {percent(part[rest].sum())}"))
    return entries


def _add_legend(axes: Any, entries: Sequence[tuple[Any, str]], columns: int) -> None:
    """Draws a legend below the panel."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour) for colour, _ in entries]
    room = dict(handlelength=1, handletextpad=0.5, columnspacing=1, labelspacing=0.3, borderpad=0.3)
    place = dict(loc="upper center", bbox_to_anchor=(0.5, 0), ncol=columns)
    legend = axes.legend(handles, [""] * len(handles), fontsize=8, frameon=False, **place, **room)
    for text, (_, said) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)  # a name may hold any letter
        text.set_text(said)


def _short(text: str) -> str:
    """The text, its middle left out where it is longer than LETTERS."""
    head = (LETTERS - 1) // 2
    return text if len(text) <= LETTERS else f"{text[:head]}…{text[-(LETTERS - 1 - head) :]}"
