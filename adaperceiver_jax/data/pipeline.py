"""From a source of images to batches on the devices, in an order that only the seed decides."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

Sample = dict[str, np.ndarray]
Transform = Callable[[Sample, np.random.Generator], Sample]
"""A sample and its own random generator -> a sample."""


class Source(Protocol):
    """Samples by their number; the same number always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


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


def random_flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors every map of a sample, left to right, half of the time."""
    if rng.random() < 0.5:
        return sample
    return {
        name: np.ascontiguousarray(x[:, ::-1]) if np.ndim(x) >= 2 else x
        for name, x in sample.items()
    }


class TrainOrder:
    """An endless, shuffled sequence of samples: every epoch in another order.

    Sample number n of the run, and the randomness of its transform, depend on the seed alone: not
    on the batch's size, the number of processes or where a run was resumed.
    """

    def __init__(self, source: Source, seed: int, transform: Transform | None = None) -> None:
        if len(source) == 0:
            raise ValueError(f"{source!r}: holds no images")
        self._order = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        self._source, self._seed, self._transform = source, seed, transform

    def __repr__(self) -> str:
        return f"{self._source!r} shuffled by {self._seed}"

    def __getitem__(self, number: int) -> Sample:
        sample = self._order[number]
        if self._transform is not None:
            sample = self._transform(sample, np.random.default_rng((self._seed, number)))
        return sample


def _share(batch_size: int) -> tuple[int, int]:
    """This process's part of a batch: its first sample, and how many."""
    size, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(
            f"batch_size={batch_size}: must be a multiple of the {jax.process_count()} processes"
        )
    return jax.process_index() * size, size


def _batches(
    load: Callable[[int], Sample], size: int, count: int, threads: int, workers: int, prefetch: int
) -> grain.IterDataset:
    """`count` samples, loaded ahead, in batches of `size`."""
    samples = grain.MapDataset.range(count).map(load).batch(size)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    if workers:
        loader = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        return samples.to_iter_dataset(options).mp_prefetch(loader)
    return samples.to_iter_dataset(options)


def train_batches(
    order: TrainOrder,
    batch_size: int,
    first: int,
    last: int,
    threads: int = 4,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[Sample]:
    """This process's part of the batches of steps `first` to `last` - 1.

    A batch holds the samples from step * batch_size on; processes take consecutive parts of it.
    """
    offset, size = _share(batch_size)

    def load(i: int) -> Sample:
        step, place = divmod(int(i), size)
        return order[(first + step) * batch_size + offset + place]

    batches = _batches(load, size, (last - first) * size, threads, workers, prefetch)
    return iter(batches)


def evaluation_batches(
    source: Source, batch_size: int, threads: int = 4, prefetch: int = 4
) -> Iterator[Sample]:
    """This process's part of each batch of a whole source, once, in order.

    The last batch is filled up; 'weight' is 1 for a sample that counts and 0 for a filler.
    """
    offset, size = _share(batch_size)
    steps = -(-len(source) // batch_size)

    def load(i: int) -> Sample:
        step, place = divmod(int(i), size)
        number = step * batch_size + offset + place
        sample = dict(source[min(number, len(source) - 1)])
        return {**sample, "weight": np.asarray(number < len(source), np.float32)}

    return iter(_batches(load, size, steps * size, threads, 0, prefetch))


def _own(x: np.ndarray) -> np.ndarray:
    """A plain array; one in a worker's shared memory is copied, so that the memory is freed."""
    return np.asarray(x) if type(x) is np.ndarray else np.array(x)


def to_devices(
    batches: Iterator[Sample], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Generator[dict[str, Any], None, None]:
    """Batches as global arrays, `ahead` of them on their way while one is used."""
    queue: collections.deque[dict[str, Any]] = collections.deque()
    try:
        for batch in batches:
            queue.append(
                {
                    name: jax.make_array_from_process_local_data(sharding, _own(x))
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
