"""A classifier and labelled images to try it on, as command lines name them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.data.loading import Loading
from adaperceiver_jax.data.pipeline import evaluation_batches
from adaperceiver_jax.data.sample import Source
from adaperceiver_jax.data.sources import Part
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.tasks.command_line import add_set, with_changes
from adaperceiver_jax.tasks.make import RunConfig, run_config
from adaperceiver_jax.tasks.weights import add_arguments, find_by_arguments
from adaperceiver_jax.train.checkpoints import FOLDER
from adaperceiver_jax.train.feed import open_data, prepared
from adaperceiver_jax.train.settings import DataSettings

INPUTS = ("image", "label")
SPLITS = ("validation", "train")


def add_labelled_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `find_labelled` reads."""
    checkpoint = "a run's folder, a folder with a config.json, a hub id or a file"
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=checkpoint)
    data = "images: scenes, tfds:, array_record:, folder:, wds: (docs/data.md; those of the run)"
    parser.add_argument("--data", metavar="SOURCE", help=data)
    parser.add_argument("--data-dir", metavar="DIR", help="config.data.dir (that of the run)")
    add_set(parser, "data.validation=10%%")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images a call (64)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of matmuls (float32)"
    )
    add_arguments(parser)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A classifier, its weights, and labelled images as it sees them."""

    model: AdaPerceiver
    params: Any
    config: RunConfig
    """How the images are found and prepared."""
    source: Source
    split: str
    batch: int

    def __len__(self) -> int:
        return len(self.source)

    @property
    def description(self) -> dict[str, Any]:
        """The values that decide which images there are and how they look."""
        data, crop = self.config.data, self.config.augment
        return {
            "data": repr(self.source),
            "split": self.split,
            "images": len(self),
            "image_size": list(data.size),
            "crop": [list(crop.crop), crop.evaluation_crop],
            "normalised": [list(self.config.images.mean), list(self.config.images.std)],
        }

    def batches(self, first: int = 0) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Batches from `first` on: normalised images (batch, H, W, 3), labels (batch,), -1 where
        the last batch is filled up."""
        rest: Source = Part(self.source, np.arange(first * self.batch, len(self)))
        if not len(rest):
            return
        prepare = prepared(self.config, INPUTS, self.model.config.num_classes)
        data = self.config.data
        loading = Loading(data.threads, data.workers, data.prefetch)
        place = NamedSharding(_mesh(), P("batch"))
        found = evaluation_batches(rest, self.batch, loading, prepare.evaluate)
        try:
            for sample in found:
                labels = np.where(sample["weight"] > 0, sample["label"], -1).astype(np.int32)
                yield self._normalise(jax.device_put(sample["image"], place)), labels
        finally:
            found.close()

    def _normalise(self, images: jax.Array) -> jax.Array:
        """Looked up, so that the same pixels give the same bits however it is compiled: by these
        an oracle knows an image again."""
        values = np.arange(256, dtype=np.float32)[:, None] / 255
        settings = self.config.images
        mean, std = (np.array(x, np.float32) for x in (settings.mean, settings.std))
        return _look_up((values - mean) / std, images)


def on_all_devices(params: Any) -> Any:
    """Parameters as programs on `Labelled.batches` need them: a copy on each of this process's
    devices."""
    return jax.device_put(jax.device_get(params), NamedSharding(_mesh(), P()))


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), "batch")


@jax.jit
def _look_up(table: jax.Array, pixels: jax.Array) -> jax.Array:
    """table (256, C), pixels (..., C) uint8 -> (..., C)."""
    return table[pixels.astype(jnp.int32), jnp.arange(table.shape[1])]


def find_labelled(options: argparse.Namespace, split: str = "validation") -> Labelled:
    """The model and images of `add_labelled_arguments`' options; ValueError if they cannot be."""
    devices = jax.local_device_count()
    if options.batch < 1 or options.batch % devices:
        raise ValueError(f"--batch={options.batch}: must be a multiple of the {devices} devices")
    found = find_by_arguments(options.checkpoint, options)
    if not isinstance(found.model, AdaPerceiver) or found.model.config.num_classes is None:
        raise ValueError(
            f"{options.checkpoint}: must hold an AdaPerceiver with classes, not "
            f"{type(found.model).__name__}"
        )
    model = found.model.clone(dtype=jnp.dtype(options.dtype))
    config = _config_of(options, model)
    opened = open_data(config.data)
    part = opened.validation if split == "validation" else opened.train
    if "label" not in part.fields:
        raise ValueError(f"--data={config.data.source}: has no labels")
    classes: int = found.model.config.num_classes
    if part.num_classes not in (None, classes) or part.smallest_num_classes > classes:
        raise ValueError(
            f"--data={config.data.source}: has {part.num_classes or part.smallest_num_classes} "
            f"classes, {options.checkpoint} {classes}"
        )
    return Labelled(model, found.read(), config, part.source, split, options.batch)


def _config_of(options: argparse.Namespace, model: AdaPerceiver) -> RunConfig:
    """A run's config, else the defaults for the model, with what the options change."""
    folder = Path(options.checkpoint)
    if (folder / FOLDER).is_dir():
        config = run_config(folder)
    elif options.data is None:
        raise ValueError(f"--data: {options.checkpoint} is no run's folder; say which images")
    else:
        data = DataSettings(image_size=model.config.image_size)
        config = RunConfig(model=model.config, data=data)
    for change in options.set:
        key = change.partition("=")[0]
        if key.partition(".")[0] not in ("data", "images", "augment"):
            raise ValueError(f"--set {key}: must be a key of data, images or augment")
    changes = [f"data.source={options.data}"] if options.data else []
    changes += [f"data.dir={options.data_dir}"] if options.data_dir else []
    return with_changes(config, [*changes, *options.set])
