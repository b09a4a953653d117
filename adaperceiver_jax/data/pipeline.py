"""Batches on the devices from a source of images, in an order that only the seed decides."""

from __future__ import annotations

import collections
import functools
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
"""Number of images in a row that may fail to decode."""
BAD = "bad"
"""Key of a sample: the number of images that did not decode before it."""
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


def own_places(sharding: jax.sharding.Sharding, batch_size: int) -> list[int]:
    """The places of a batch, 0 to batch_size - 1, that this process's devices hold, ascending.

    They need not be neighbours: a mesh follows the links between chips, and on a pod's torus a
    host's chips are a square of it.
    """
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({place for part in parts if part for place in range(batch_size)[part[0]]})


def train_batches(
    order: TrainOrder,
    batch_size: int,
    first: int,
    last: int,
    loading: Loading = IN_THREADS,
    places: Sequence[int] | None = None,
) -> Batches:
    """This process's part of the batches of steps `first` to `last` - 1.

    A batch holds the samples from step * batch_size on; a process makes those at `places`
    (`own_places`), by default all.
    """
    places = _all_places(batch_size) if places is None else places

    def load(i: int) -> Sample:
        step, nth = divmod(int(i), len(places))
        return order[(first + step) * batch_size + places[nth]]

    return Batches(load, len(places), (last - first) * len(places), loading)


def evaluation_batches(
    source: Source,
    batch_size: int,
    loading: Loading = IN_THREADS,
    transform: Callable[[Sample], Sample] = dict,
    places: Sequence[int] | None = None,
) -> Batches:
    """This process's part of each batch of a whole source, once, in order; `places` as in training.

    The last batch is filled up; 'weight' is 1 for a sample that counts and 0 for a filler. An image
    that does not decode is an error.
    """
    places = _all_places(batch_size) if places is None else places
    steps = -(-len(source) // batch_size)

    def load(i: int) -> Sample:
        step, nth = divmod(int(i), len(places))
        number = step * batch_size + places[nth]
        try:
            sample = transform(source[min(number, len(source) - 1)])
        except BadImageError as error:
            remedy = "evaluation leaves no image out: mend it, or take it away"
            raise BadImageError(f"{error}; {remedy}") from error
        return {**sample, "weight": np.asarray(number < len(source), np.float32)}

    return Batches(load, len(places), steps * len(places), loading)


def _all_places(batch_size: int) -> Sequence[int]:
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes share a batch: say which `places` are this one's, by "
            "own_places"
        )
    return range(batch_size)


def to_devices(
    batches: Iterator[Sample], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[dict[str, Any], None, None]:
    """Batches of what is at each process's `own_places` as global arrays, `ahead` of them on their
    way while one is used."""
    make = functools.partial(jax.make_array_from_process_local_data, sharding)
    queue: collections.deque[dict[str, Any]] = collections.deque()
    try:
        for batch in batches:
            queue.append({name: make(np.asarray(x)) for name, x in batch.items()})
            if len(queue) > ahead:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        if hasattr(batches, "close"):  # stops the loaders
            batches.close()
