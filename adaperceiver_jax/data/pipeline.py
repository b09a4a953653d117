"""From a source of images to batches on the devices, in an order that only the seed decides."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.loading import IN_THREADS, Batches, Loading
from adaperceiver_jax.data.sample import Sample, Source

log = logging.getLogger(__name__)

ATTEMPTS = 100
"""Images that may not decode one after another."""
BAD = "bad"
"""Of a sample: how many images that did not decode it stands for."""
Transform = Callable[[Sample, np.random.Generator], Sample]
"""A sample and its own random generator -> a sample."""


class Cached:
    """A source that keeps what it has made once, of the named arrays only."""

    def __init__(self, source: Source, keys: Sequence[str]) -> None:
        self._source, self._keys = source, tuple(keys)
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        index = int(index)
        if index not in self._kept:
            sample = self._source[index]
            self._kept[index] = {key: sample[key] for key in self._keys}
        return dict(self._kept[index])

    def __repr__(self) -> str:
        return f"Cached({self._source!r}, {self._keys})"


class TrainOrder:
    """An endless, shuffled sequence of samples: every epoch in another order.

    Sample number n of the run, and the randomness of its transform, depend on the seed alone: not
    on the batch's size, the number of processes or where a run was resumed.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        transform: Transform | None = None,
        tolerant: bool = False,
    ) -> None:
        """tolerant: an image that cannot be read or does not decode is named in a warning, and
        one drawn from all takes its place; BAD of the sample counts them. Otherwise it is an
        error."""
        if len(source) == 0:
            raise ValueError(f"{source!r}: holds no images")
        self._order = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        self._source, self._seed, self._transform = source, seed, transform
        self._tolerant = tolerant

    def __repr__(self) -> str:
        return f"{self._source!r} shuffled by {self._seed}"

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng((self._seed, number))
        if not self._tolerant:
            return self._made(self._order, number, rng)
        source, index = self._order, number
        for bad in range(ATTEMPTS):
            try:
                return {**self._made(source, index, rng), BAD: np.int32(bad)}
            except (BadImageError, OSError) as error:
                log.warning("%s; another image takes its place", error)
            rng = np.random.default_rng((self._seed, number, bad))
            source, index = self._source, int(rng.integers(len(self._source)))
        raise BadImageError(f"{ATTEMPTS} images one after another cannot be read; see above")

    def _made(self, source: Any, index: int, rng: np.random.Generator) -> Sample:
        sample = source[index]
        return sample if self._transform is None else self._transform(sample, rng)


def _share(batch_size: int) -> tuple[int, int]:
    """This process's part of a batch: its first sample, and how many."""
    size, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(
            f"batch_size={batch_size}: must be a multiple of the {jax.process_count()} processes"
        )
    return jax.process_index() * size, size


def train_batches(
    order: TrainOrder, batch_size: int, first: int, last: int, loading: Loading = IN_THREADS
) -> Batches:
    """This process's part of the batches of steps `first` to `last` - 1.

    A batch holds the samples from step * batch_size on; processes take consecutive parts of it.
    """
    offset, size = _share(batch_size)

    def load(i: int) -> Sample:
        step, place = divmod(int(i), size)
        return order[(first + step) * batch_size + offset + place]

    return Batches(load, size, (last - first) * size, loading)


def evaluation_batches(
    source: Source,
    batch_size: int,
    loading: Loading = IN_THREADS,
    transform: Callable[[Sample], Sample] = dict,
) -> Batches:
    """This process's part of each batch of a whole source, once, in order.

    The last batch is filled up; 'weight' is 1 for a sample that counts and 0 for a filler. An image
    that does not decode is an error.
    """
    offset, size = _share(batch_size)
    steps = -(-len(source) // batch_size)

    def load(i: int) -> Sample:
        step, place = divmod(int(i), size)
        number = step * batch_size + offset + place
        try:
            sample = transform(source[min(number, len(source) - 1)])
        except BadImageError as error:
            remedy = "evaluation leaves no image out: mend it, or take it away"
            raise BadImageError(f"{error}; {remedy}") from error
        return {**sample, "weight": np.asarray(number < len(source), np.float32)}

    return Batches(load, size, steps * size, loading)


def to_devices(
    batches: Iterator[Sample], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[dict[str, Any], None, None]:
    """Batches as global arrays, `ahead` of them on their way while one is used."""
    queue: collections.deque[dict[str, Any]] = collections.deque()
    try:
        for batch in batches:
            queue.append(
                {
                    name: jax.make_array_from_process_local_data(sharding, np.asarray(x))
                    for name, x in batch.items()
                }
            )
            if len(queue) > ahead:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        close = getattr(batches, "close", None)  # stops the loaders
        if close is not None:
            close()
