"""Figures 15 to 17 of the paper: principal components of patch features.

python -m experiments.paper.pca 15 IMAGE... --checkpoint DIR --out figure_15.png      # over widths
python -m experiments.paper.pca 16 --scenes 0 1 2 --checkpoint runs/features --csv tokens.csv
python -m experiments.paper.pca 16 --from tokens.csv

The whole network with each width (15), each token count (16) or cut after each block (17) makes
patch features of each image: the trained widths; the trained counts, and twice and four times the
maximum; all depths, from one pass. Red, green and blue are their first three principal components.
These are found in the features of the whole network, image by image, so that within a row equal
colours mean equal features.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.data.scenes import DIFFICULTY, Scenes
from adaperceiver_jax.data.sources import SCENES
from adaperceiver_jax.evaluate.components import (
    Panel,
    SubNetwork,
    component_panels,
    csv_text,
    feature_model,
    feature_params,
    read_panels,
    whole_network,
)
from adaperceiver_jax.models.config import check_sub_network
from adaperceiver_jax.tasks.weights import add_arguments, find_by_arguments
from experiments.paper.shared import refusals
from tools.predict import find_run_config, find_view, open_image

THUMBNAIL = 128
"""Pixels, at most, of the longer side of an image that is kept in the CSV."""
PANEL, GAP, TITLE = 1.25, 0.1, 0.27
"""Inches: a panel's width, between panels, above each."""
PANELS = 11
"""Panels next to the image; more go on below."""
LETTERS = 12
"""Letters of an image's name that are shown."""
DPI = 150


@dataclasses.dataclass(frozen=True)
class Figure:
    """One of the figures: the size of a sub-network that varies, the others being the largest."""

    vary: str
    """'num_tokens', 'width' or 'depth'."""
    title: str
    """Title of a panel: its size goes into {}."""
    sizes: Callable[[ap.AdaPerceiverConfig], Sequence[int]]
    """Sizes that are shown where none are asked for."""

    def sub_networks(self, model: ap.AdaPerceiver, asked: Sequence[int] | None) -> list[SubNetwork]:
        """The whole network with each of the sizes in turn."""
        sizes = sorted({*(asked or self.sizes(model.config))})
        return [whole_network(model.config)._replace(**{self.vary: size}) for size in sizes]


def _tokens(config: ap.AdaPerceiverConfig) -> tuple[int, ...]:
    most = config.max_latent_tokens
    return *config.token_granularities, most, 2 * most, 4 * most


FIGURES = {
    "15": Figure("width", "width {}", lambda config: (*config.widths, config.full_width)),
    "16": Figure("num_tokens", "{} tokens", _tokens),
    "17": Figure("depth", "depth {}", lambda config: range(1, config.depth + 1)),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES, help="its number in the paper")
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="*")
    scenes = "rendered validation scenes by their numbers, instead of images"
    parser.add_argument("--scenes", type=int, nargs="+", metavar="I", default=[], help=scenes)
    source = parser.add_mutually_exclusive_group(required=True)
    checkpoint = "a run's folder, a folder with a config.json, a hub id or a file"
    source.add_argument("--checkpoint", help=checkpoint)
    again = "draws what --csv wrote, without a model"
    source.add_argument("--from", type=Path, dest="drawn_from", metavar="CSV", help=again)
    sizes = "the widths, token counts or depths to show"
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help=sizes)
    parser.add_argument("--out", type=Path, metavar="PNG", help="the picture (figure_N.png)")
    parser.add_argument("--csv", type=Path, help="where the panels are written, as numbers")
    add_arguments(parser)
    parser.set_defaults(image_size=None)  # of `find_view`: the run's, else the model's
    return parser


def make_panels(figure: Figure, options: argparse.Namespace) -> list[Panel]:
    """Each image, and its components under each sub-network."""
    if bool(options.images) == bool(options.scenes):
        raise ValueError("IMAGE: give images or --scenes, one of them")
    found = find_by_arguments(options.checkpoint, options)
    try:  # refuses a model without patch features before its weights are read
        model = feature_model(found.model)
    except ValueError as error:
        raise ValueError(f"{options.checkpoint}: {error}") from error
    shown, pixels, images = open_images(found.model, options)
    sub_networks = figure.sub_networks(model, options.sizes)
    for sub_network in sub_networks:
        check_sub_network(model.config, *sub_network)
    params = feature_params(found.model, found.read())
    panels = component_panels(model, params, images, shown, sub_networks)
    own = [Panel(name, None, thumbnail(each)) for name, each in zip(shown, pixels, strict=True)]
    return [panel for name in shown for panel in (*own, *panels) if panel.image == name]


def open_images(model: Any, options: argparse.Namespace) -> tuple[list[str], list, np.ndarray]:
    """Names, pixels (H, W, 3) uint8 that the model is shown, and those normalised, (B, H, W, 3)."""
    run = find_run_config(options.checkpoint)
    task = "classify" if isinstance(model, ap.AdaPerceiver) else "segment"
    view = find_view(task, model, run, options)[1]
    if options.images:
        paths = list(dict.fromkeys(options.images))
        names, opened = [str(path) for path in paths], [open_image(path) for path in paths]
    else:
        numbers = list(dict.fromkeys(options.scenes))
        if min(numbers) < 0:
            raise ValueError(f"--scenes={min(numbers)}: must be at least 0")
        size = getattr(model.config, "backbone", model.config).image_size
        rendered = run is not None and run.data.source == SCENES
        hard = run.data.difficulty if run is not None and rendered else DIFFICULTY
        scenes = Scenes(max(numbers) + 1, size, "validation", difficulty=hard)
        names = [f"scene {i}" for i in numbers]
        opened = [Image.fromarray(scenes[i]["image"]) for i in numbers]
        view = ap.Preprocessing(image_size=size, crop=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    return names, [view.pixels(each) for each in opened], np.stack([view(each) for each in opened])


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) uint8 -> in [0, 1], no larger than THUMBNAIL."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image) / 255


def changes(panels: Sequence[Panel], vary: str) -> dict[tuple[int, int], float]:
    """Mean difference of the colours between one value and the next, over the images."""
    found = collections.defaultdict(list)
    for shown in panels_by_image(panels).values():
        for one, other in itertools.pairwise(shown):
            values = getattr(one.sub_network, vary), getattr(other.sub_network, vary)
            found[values].append(np.abs(one.colours - other.colours).mean())
    return {values: float(np.mean(gaps)) for values, gaps in found.items()}


def panels_by_image(panels: Sequence[Panel]) -> dict[str, list[Panel]]:
    """Each image's panels of sub-networks, from the smallest on."""
    found: dict[str, list[Panel]] = {panel.image: [] for panel in panels}
    for panel in sorted(panels, key=lambda panel: panel.sub_network or ()):
        found[panel.image] += [panel] if panel.sub_network else []
    return found


def draw(figure: Figure, panels: Sequence[Panel]) -> bytes:
    """A PNG with a row per image: the image itself, if it is there, and PANELS others per row."""
    from matplotlib.figure import Figure as Picture

    by_image = panels_by_image(panels)
    own = {panel.image: panel for panel in panels if panel.sub_network is None}
    shown = [panel for panel in panels if panel.sub_network is not None]
    check_varies(figure, shown)
    most = max(map(len, by_image.values()))
    beside, down = min(most, PANELS), -(-most // PANELS)
    left = bool(own)
    rows, columns, _ = shown[0].colours.shape
    tall = PANEL * rows / columns
    size = (GAP + (left + beside) * (PANEL + GAP), GAP + len(by_image) * down * (TITLE + tall))
    picture = Picture(figsize=size)

    def show(panel: Panel, title: str, row: int, column: int) -> None:
        x, y = GAP + column * (PANEL + GAP), row * (TITLE + tall) + TITLE
        box = (x / size[0], 1 - (y + tall) / size[1], PANEL / size[0], tall / size[1])
        axes = picture.add_axes(box)
        axes.imshow(panel.colours, interpolation="nearest", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(title, fontsize=11, pad=3, parse_math=False)

    for i, (name, found) in enumerate(by_image.items()):
        if name in own:
            show(own[name], Path(name).stem[:LETTERS], i * down, 0)
        for k, panel in enumerate(found):
            title = figure.title.format(getattr(panel.sub_network, figure.vary))
            show(panel, title, i * down + k // PANELS, left + k % PANELS)
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def check_varies(figure: Figure, panels: Sequence[Panel]) -> None:
    """Raises ValueError unless these are panels of which nothing else varies."""
    if not panels:
        raise ValueError("panels: none of a sub-network; there is nothing to draw")
    for name in SubNetwork._fields:
        values = sorted({getattr(panel.sub_network, name) for panel in panels})
        if name != figure.vary and len(values) > 1:
            raise ValueError(
                f"{name}={values}: this figure varies {figure.vary} alone; draw it with the "
                "figure that wrote it"
            )


def make_figure(figure: Figure, options: argparse.Namespace) -> None:
    """Makes the panels, or reads them; writes CSV and picture; prints how far panels differ."""
    if options.drawn_from:
        for name in ("images", "scenes", "sizes"):
            if getattr(options, name):
                raise ValueError(
                    f"--from={options.drawn_from}: draws what it holds; leave out {name}"
                )
        panels = read_panels(options.drawn_from)
    else:
        panels = make_panels(figure, options)
    for path, content in (
        (options.csv, lambda: csv_text(panels).encode()),
        (options.out or Path(f"figure_{options.figure}.png"), lambda: draw(figure, panels)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content())
            print(f"-> {path}")
    print(f"{figure.vary}: mean change of the colours (0 to 1)")
    for (one, other), change in changes(panels, figure.vary).items():
        print(f"{one:5d} -> {other:5d}  {change:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws a figure; prints how far its panels differ."""
    options = make_parser().parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # of Orbax, which warns that reading is read only
    with refusals():
        make_figure(FIGURES[options.figure], options)


if __name__ == "__main__":
    main()
