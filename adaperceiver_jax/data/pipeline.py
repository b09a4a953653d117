"""From a source of images to batches on the devices, in an order that only the seed decides."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from adaperceiver_jax.data.decode import BadImageError

log = logging.getLogger(__name__)

ATTEMPTS = 100
"""Images that may not decode one after another."""
BAD = "bad"
"""Of a sample: how many images that did not decode it stands for."""
Sample = dict[str, Any]
"""Arrays, and of a source that reads files their bytes and the image's name."""
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
        """tolerant: an image that does not decode is named in a warning, and another of the epoch
        takes its place; BAD of the sample counts them. Otherwise it is an error."""
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
            return self._made(number, rng)
        place, epoch = number, number // len(self._source)
        for bad in range(ATTEMPTS):
            try:
                return {**self._made(place, rng), BAD: np.int32(bad)}
            except BadImageError as error:
                log.warning("%s; another image takes its place", error)
            rng = np.random.default_rng((self._seed, number, bad))
            place = epoch * len(self._source) + int(rng.integers(len(self._source)))
        raise BadImageError(f"{ATTEMPTS} images one after another cannot be decoded; see above")

    def _made(self, place: int, rng: np.random.Generator) -> Sample:
        sample = self._order[place]
        return sample if self._transform is None else self._transform(sample, rng)


def _share(batch_size: int) -> tuple[int, int]:
    """This process's part of a batch: its first sample, and how many."""
    size, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(
            f"batch_size={batch_size}: must be a multiple of the {jax.process_count()} processes"
        )
    return jax.process_index() * size, size


@dataclasses.dataclass(frozen=True)
class Loading:
    """How batches are made on the host; changes nothing of them."""

    threads: int = 4
    """In each process."""
    workers: int = 0
    """Processes beside this one, each on a core of its own; -1: one a core, less one."""
    prefetch: int = 4
    """Batches made ahead, by each process."""

    def processes(self) -> int:
        """How many are started."""
        return self.workers if self.workers >= 0 else max(1, len(cores()) - 1)


def cores() -> list[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _begin_worker(own_cores: list[int], index: int, count: int) -> None:
    """Takes a core, leaves Ctrl-C to the process that trains, and ends when that one does."""
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {own_cores[index % len(own_cores)]})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class Batches:
    """Batches in their order, made by threads or processes that end with `close`."""

    def __init__(self, load: Callable[[int], Sample], size: int, count: int, by: Loading) -> None:
        """`count` samples by their number, in batches of `size`."""
        samples = grain.MapDataset.range(count).map(load).batch(size)
        options = grain.ReadOptions(by.threads, max(by.threads, by.prefetch))
        batches = samples.to_iter_dataset(options)
        workers = min(by.processes(), -(-count // size)) if by.workers else 0
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own
                flags.FLAGS.mark_as_parsed()
            own_cores = cores()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=by.prefetch
                ),
                worker_init_fn=functools.partial(_begin_worker, own_cores),
            )
        self._batches: Any = iter(batches)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Sample:
        # Plain arrays: those of a worker lie in shared memory, which is freed as they are dropped.
        return {
            name: x if type(x) is np.ndarray else np.array(x)
            for name, x in next(self._batches).items()
        }

    def close(self) -> None:
        """Ends the processes and frees their memory."""
        batches, self._batches = self._batches, iter(())
        if not hasattr(batches, "close"):
            return
        batches.close()
        del batches
        gc.collect()
        # Grain frees shared memory in a thread; what it has not come to when Python exits is left.
        pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
        if pool is not None:
            pool.apply(int)


def train_batches(
    order: TrainOrder, batch_size: int, first: int, last: int, loading: Loading = Loading()
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
    loading: Loading = Loading(),
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
        sample = transform(source[min(number, len(source) - 1)])
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
