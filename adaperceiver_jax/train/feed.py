"""A run's data: the source its settings name, in training order and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaperceiver_jax.data.pipeline import (
    Cached,
    Sample,
    TrainOrder,
    evaluation_batches,
    random_flip,
    train_batches,
)
from adaperceiver_jax.data.sources import Opened, open_source
from adaperceiver_jax.train.settings import DataSettings, Settings
from adaperceiver_jax.train.task import Task


def open_data(data: DataSettings) -> Opened:
    """The source; ValueError if it is not there."""
    return open_source(
        data.source,
        data.dir,
        data.image_size,
        data.train_count,
        data.validation_count,
        data.seed,
        data.difficulty,
    )


class Feed:
    """Opens the source; ValueError if it is not there or has other classes than the model."""

    def __init__(self, settings: Settings, task: Task) -> None:
        data = settings.data
        opened = open_data(data)
        if task.num_classes != opened.num_classes:
            raise ValueError(
                f"num_classes={task.num_classes} of the model: {data.source} has "
                f"{opened.num_classes} classes; set config.model.num_classes to it"
            )
        self._settings = settings
        train, validation = opened.train, opened.validation
        if opened.keep:
            train, validation = Cached(train, task.inputs), Cached(validation, task.inputs)
        self._order = TrainOrder(train, settings.seed, random_flip if data.flip else None)
        self._validation = validation
        self.images = len(opened.train)
        """An epoch's."""

    def training(self, first: int, last: int) -> Iterator[Sample]:
        """This process's part of the batches of the steps after `first`, up to `last`."""
        data = self._settings.data
        return train_batches(
            self._order,
            self._settings.batch_size,
            first,
            last,
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
        )

    def evaluation(self) -> Iterator[Sample]:
        """This process's part of the validation images, once."""
        data = self._settings.data
        return evaluation_batches(
            self._validation, self._settings.evaluation.batch_size, data.threads, data.prefetch
        )

    def position(self) -> dict[str, Any]:
        """What, beside the number of steps, decides which images come next."""
        settings = self._settings
        return {
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "source": repr(self._order),
        }
