"""A run's data: the source its settings name, in training order and for evaluation."""

from __future__ import annotations

from typing import Any

import jax

from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.data.loading import Batches, Loading
from adaperceiver_jax.data.pipeline import (
    Cached,
    TrainOrder,
    evaluation_batches,
    own_places,
    train_batches,
)
from adaperceiver_jax.data.sources import Opened, Split, open_source
from adaperceiver_jax.train.settings import DataSettings, Settings
from adaperceiver_jax.train.task import Task


def open_data(data: DataSettings) -> Opened:
    """The source; ValueError if it is not there."""
    return open_source(
        data.source,
        data.dir,
        data.validation,
        image_size=data.image_size,
        train_count=data.train_count,
        validation_count=data.validation_count,
        seed=data.seed,
        difficulty=data.difficulty,
    )


def prepared(settings: Settings, inputs: tuple[str, ...], num_classes: int | None) -> Preparation:
    """The preparation of images, for a task that looks at `inputs`."""
    data = settings.data
    return Preparation(
        size=data.size,
        inputs=inputs,
        augment=settings.augment,
        num_classes=num_classes,
        zero_is_ignored=data.zero_is_ignored,
        depth_scale=data.depth_scale,
        max_depth=data.max_depth,
    )


class Feed:
    """A run's images; ValueError if they are not what the task learns from."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        opened: Opened | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        """
        Args:
          opened: the source, if it is open already.
          sharding: of batches; needed where several processes share them.
        """
        self._sharding = sharding
        data = settings.data
        opened = opened or open_data(data)
        for split in (opened.train, opened.validation):
            _check(split, task, data.source)
        self._settings = settings
        train, validation = opened.train.source, opened.validation.source
        if opened.rendered:
            train, validation = Cached(train, task.inputs), Cached(validation, task.inputs)
        self._preparation = prepared(settings, task.inputs, task.num_classes)
        tolerant = not opened.rendered and data.bad_images > 0
        self._order = TrainOrder(train, settings.seed, self._preparation.train, tolerant)
        self._validation = validation
        self._loading = Loading(data.threads, data.workers, data.prefetch)
        self.images = len(train)
        """Images per epoch."""

    def training(self, first: int, last: int) -> Batches:
        """This process's part of the batches of the steps after `first`, up to `last`."""
        size = self._settings.batch_size
        places = self._places(size)
        return train_batches(self._order, size, first, last, self._loading, places)

    def evaluation(self) -> Batches:
        """This process's part of the validation images, once."""
        size = self._settings.evaluation.batch_size
        return evaluation_batches(
            self._validation, size, self._loading, self._preparation.evaluate, self._places(size)
        )

    def _places(self, size: int) -> list[int] | None:
        return None if self._sharding is None else own_places(self._sharding, size)

    def epoch(self, step: int) -> int:
        """The epoch that a step, counted from 1, begins in."""
        return (step - 1) * self._settings.batch_size // self.images

    def position(self) -> dict[str, Any]:
        """The values that, with the number of steps, decide which images come next."""
        settings = self._settings
        return {
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "source": repr(self._order),
        }


def _check(split: Split, task: Task, name: str) -> None:
    missing = [what for what in task.inputs if what not in split.fields]
    if missing:
        raise ValueError(
            f"config.data.source={name!r}: has no {missing[0]}, which the task learns from; it has "
            f"{', '.join(split.fields)}"
        )
    if task.num_classes is None or "label" not in task.inputs:
        return  # the classes of a label map are looked at map by map
    if split.num_classes is not None and task.num_classes != split.num_classes:
        raise ValueError(
            f"num_classes={task.num_classes} of the model: {name} has {split.num_classes} classes; "
            "set config.model.num_classes to it"
        )
    if split.smallest_num_classes > task.num_classes:
        raise ValueError(
            f"num_classes={task.num_classes} of the model: {name} has the label "
            f"{split.smallest_num_classes - 1}; set config.model.num_classes above it"
        )
