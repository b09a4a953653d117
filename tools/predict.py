"""Predictions of a checkpoint for your images, at any budget: classes, class maps or depth.

python tools/predict.py cat.jpg dog.jpg --checkpoint weights/in1k --num-tokens 32 128 256
python tools/predict.py cat.jpg --checkpoint weights/in1k --tau 0.8
python tools/predict.py street.jpg --checkpoint runs/ade20k --num-tokens 64 256 --width 416 832
python tools/predict.py room.jpg --checkpoint runs/nyuv2 --depth 7 14 21 --out pictures

Classification prints a row an image and budget. Segmentation and depth also write a PNG an image,
OUT/NAME_segment.png or OUT/NAME_depth.png: the image, and beside it what each budget makes of it.
Several values after --num-tokens, --width and --depth give all their combinations.

A run's folder says how its images were prepared. For another checkpoint they are resized to the
model's size and normalised as AdaPerceiver's are, or as timm's by their names. Images are turned
upright as their EXIF says.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

import adaperceiver_jax as ap
from adaperceiver_jax.convert.timm import HUB
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.data.decode import decode, read_image
from adaperceiver_jax.data.scenes import CLASSES
from adaperceiver_jax.data.sources import SCENES
from adaperceiver_jax.data.transforms import resize
from adaperceiver_jax.evaluate.points import AXES
from adaperceiver_jax.tasks.command_line import make_parser, refusals
from adaperceiver_jax.tasks.make import RunConfig, run_config
from adaperceiver_jax.tasks.weights import add_arguments, find_by_arguments
from adaperceiver_jax.train.checkpoints import FOLDER
from adaperceiver_jax.train.workdir import CONFIG, MODEL
from tools import pictures

TASKS: dict[str, tuple[type, ...]] = {
    "classify": (ap.AdaPerceiver, ap.ViT),
    "segment": (ap.SegmentationModel,),
    "depth": (ap.DepthModel,),
}
Options = argparse.Namespace


@dataclasses.dataclass(frozen=True)
class Budget:
    """A sub-network and its cost per image."""

    chosen: dict[str, Any]
    """The AXES that were asked for."""
    sizes: tuple[str, ...]
    """Its tokens, width and depth; '-' for a ViT."""
    gflops: float

    @property
    def cost(self) -> str:
        return f"{self.gflops:.3g}" if self.gflops < 1000 else f"{self.gflops:.0f}"

    @property
    def title(self) -> str:
        what = "{} tokens, width {}, depth {}".format(*self.sizes)
        return f"{'the whole ViT' if '-' in what else what}\n{self.cost} GFLOPs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(ap.Preprocessing):
    """Resizes the whole image, cuts nothing off."""

    size: tuple[int, int]
    """Height and width."""

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(resize(image, self.size))


def read_options(arguments: Sequence[str] | None) -> Options:
    parser = make_parser(__doc__)
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    source = "a run's folder, a folder with a config.json, a hub id, a timm name or a file"
    parser.add_argument("--checkpoint", required=True, help=source)
    parser.add_argument("--task", choices=tuple(TASKS), help="(what the model does)")
    for name, what in zip(AXES, ("latents", "width", "depth"), strict=True):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, nargs="+", metavar="N", help=f"{what} (all)")
    tau = "classify: leave after the first block that gives a class this probability (never)"
    parser.add_argument("--tau", type=float, metavar="P", help=tau)
    out = "where segment and depth write their pictures (%(default)s)"
    parser.add_argument("--out", type=Path, default="predictions", metavar="FOLDER", help=out)
    labels = "the classes' names, one a line (of a run on scenes: theirs; else numbers)"
    parser.add_argument("--labels", type=Path, metavar="FILE", help=labels)
    size = "what images are resized to for the model (the run's size, else the model's)"
    parser.add_argument("--image-size", type=int, nargs="+", metavar=("H", "W"), help=size)
    add_arguments(parser)
    return parser.parse_args(arguments)


def choose_task(model: Any, options: Options) -> str:
    """The model's task; ValueError if it has none, or not the one that was asked for."""
    name = type(model).__name__
    task = next((task for task, kinds in TASKS.items() if isinstance(model, kinds)), None)
    if task is None or getattr(model.config, "num_classes", 0) is None:
        tasks = ", ".join(TASKS)
        raise ValueError(f"{options.checkpoint}: does none of {tasks} ({name} without classes)")
    if options.task not in (None, task):
        raise ValueError(f"--task={options.task}: {options.checkpoint} is for {task} ({name})")
    if options.labels and task == "depth":
        raise ValueError(f"--labels={options.labels}: for {task} there are no classes")
    if options.tau is not None:
        if not isinstance(model, ap.AdaPerceiver):
            raise ValueError(f"--tau={options.tau}: only an AdaPerceiver exits early, not {name}")
        if options.depth:
            raise ValueError(f"--tau={options.tau}: decides the depth; leave out --depth")
        if not 0 <= options.tau <= 1:
            raise ValueError(f"--tau={options.tau}: must be a probability, 0 to 1")
    return task


def find_view(
    task: str, model: Any, run: RunConfig | None, options: Options
) -> tuple[tuple[int, int], ap.Preprocessing]:
    """The size of images for the model, and their preparation; for maps nothing is cut off."""
    c = getattr(model.config, "backbone", model.config)
    if c.in_channels != 3:
        raise ValueError(f"{options.checkpoint}: its images have {c.in_channels} channels, not 3")
    size, view = (c.image_size, c.image_size), ap.Preprocessing()
    timm = str(options.model or options.checkpoint).removeprefix(HUB)
    if run is not None:
        size, mean, std = run.data.size, run.images.mean, run.images.std
        view = ap.Preprocessing(crop=run.augment.evaluation_crop, mean=mean, std=std)
    elif timm in ap.timm_models():
        view = ap.timm_model(timm).preprocessing
    whole = task != "classify" or (run is not None and not run.augment.crop)
    if options.image_size:
        size = check_size(options.image_size, c.patch_size, square=not whole)
    if whole:
        return size, Whole(size=size, mean=view.mean, std=view.std)
    return size, dataclasses.replace(view, image_size=size[0])


def check_size(sides: Sequence[int], patch: int, square: bool) -> tuple[int, int]:
    """Height and width; ValueError unless the model can take them."""
    said = f"--image-size={' '.join(map(str, sides))}"
    if len(sides) > 2:
        raise ValueError(f"{said}: must be a height and, if it is another, a width")
    near = [max(1, round(side / patch)) * patch for side in sides]
    if near != sides:
        nearest = " ".join(map(str, near))
        raise ValueError(f"{said}: must be multiples of the patch, {patch}; the nearest: {nearest}")
    if square and sides[0] != sides[-1]:
        raise ValueError(f"{said}: what is classified is cut to a square; give one number")
    return sides[0], sides[-1]


def make_budgets(config: Any, size: tuple[int, int], options: Options) -> list[Budget]:
    """All combinations of the values; ValueError if the model has no such sub-network."""
    c, budgets = getattr(config, "backbone", config), []
    for values in itertools.product(*(getattr(options, name) or [None] for name in AXES)):
        pairs = zip(AXES, values, strict=True)
        chosen: dict[str, Any] = {name: value for name, value in pairs if value is not None}
        gflops = ap.flops(config, **chosen, image_size=size).total / 1e9
        sizes: tuple[str, ...] = ("-",) * 3
        if isinstance(c, ap.AdaPerceiverConfig):
            most = (c.max_latent_tokens, c.full_width, c.depth)
            sizes = tuple(str(v or m) for v, m in zip(values, most, strict=True))
        budgets.append(Budget(chosen, sizes, gflops))
    return budgets


def class_names(
    task: str, model: Any, run: RunConfig | None, labels: Path | None
) -> tuple[str, ...]:
    """The names of the file, else those of scenes for a run on them, else numbers."""
    count = getattr(model.config, "num_classes", 0)
    if labels:
        lines = labels.read_bytes().decode("utf-8-sig", "replace").rstrip().split("\n")
        if len(lines) != count:
            raise ValueError(f"--labels={labels}: has {len(lines)} names for {count} classes")
        return tuple(line.strip() for line in lines)
    names = ("background", *CLASSES) if task == "segment" else CLASSES
    if run is not None and run.data.source == SCENES and len(names) == count:
        return names
    return tuple(f"class {k}" for k in range(count))


def open_image(path: Path) -> Image.Image:
    """The image in RGB and upright; ValueError or OSError names what is no image."""
    return ImageOps.exif_transpose(decode(read_image(path.read_bytes(), str(path)), str(path)))


def places(task: str, options: Options) -> list[Path]:
    """Where the pictures go: each to a place of its own, and none over an image."""
    taken, found = {str(path.resolve()).lower() for path in options.images}, []
    for path in options.images:
        place, number = options.out / f"{path.stem}_{task}.png", 1
        while str(place.resolve()).lower() in taken:
            number += 1
            place = options.out / f"{path.stem}_{number}_{task}.png"
        taken.add(str(place.resolve()).lower())
        found.append(place)
    return found


def start_table(images: Sequence[Path], what: str) -> Callable[..., None]:
    """Prints the header; what it gives prints a row: image, tokens, width and depth, the rest."""
    wide = max(len(str(path)) for path in images)

    def row(image: Path | str, sizes: Sequence[str], what: str) -> None:
        budget = "{:>6s}  {:>5s}  {:>5s}".format(*sizes)
        print(f"{image!s:{wide}s}  {budget}  {what}", flush=True)

    row("image", ("tokens", "width", "depth"), what)
    return row


def classify(
    call: Callable[..., Any], budgets: list[Budget], names: Sequence[str], options: Options
) -> None:
    """Prints the likeliest classes; with --tau the depth each image left at."""
    row = start_table(options.images, "likeliest classes")
    for path in options.images:
        image = open_image(path)
        for budget in budgets:
            out = call(image, budget)
            left = budget.sizes[2] if options.tau is None else str(out.depth[0])
            found = pictures.largest(np.asarray(jax.nn.softmax(out.logits[0])), names)
            row(path, (*budget.sizes[:2], left), found)


def show(
    call: Callable[..., Any], budgets: list[Budget], names: Sequence[str], options: Options
) -> None:
    """Prints the largest classes or, without names, the metres; writes a picture an image."""
    options.out.mkdir(parents=True, exist_ok=True)
    task, what = ("segment", "largest classes") if names else ("depth", "metres")
    row = start_table(options.images, f" GFLOPs  {what}")
    for path, place in zip(options.images, places(task, options), strict=True):
        image, maps = open_image(path), []
        for budget in budgets:
            out = call(image, budget)
            maps.append(pictures.own_size(out, (image.height, image.width)))
            row(path, budget.sizes, f"{budget.cost:>7s}  {pictures.summary(maps[-1], names)}")
        titles = [budget.title for budget in budgets]
        write_bytes(place, pictures.draw(path.name, np.asarray(image), maps, titles, names))
        print(f"  -> {place}")


def find_run_config(checkpoint: str) -> RunConfig | None:
    """The config of the run whose folder, or whose model, this is; None for other checkpoints."""
    folder = Path(checkpoint)
    folder = folder.parent if folder.name == MODEL else folder  # left there by the run
    is_run = (folder / FOLDER).is_dir() and (folder / CONFIG).is_file()
    return run_config(folder) if is_run else None


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Refuses what can be refused, reads the weights, shows what they make of the images."""
    options = read_options(arguments)
    found = find_by_arguments(options.checkpoint, options)
    model: Any = found.model
    task, run = choose_task(model, options), find_run_config(options.checkpoint)
    size, view = find_view(task, model, run, options)
    budgets = make_budgets(model.config, size, options)
    names = class_names(task, model, run, options.labels)
    for path in options.images:
        open_image(path)  # refuses a bad one before anything is computed
    params = jax.tree.map(jnp.asarray, found.read())
    apply = jax.jit(model.apply, static_argnames=AXES)

    def call(image: Image.Image, budget: Budget) -> Any:
        pixels = jnp.asarray(view(image)[None])
        if options.tau is None:
            return apply({"params": params}, pixels, **budget.chosen)
        return ap.early_exit(model, params, pixels, options.tau, **budget.chosen)

    (classify if task == "classify" else show)(call, budgets, names, options)


if __name__ == "__main__":
    main()
