"""Threads and processes that make batches ahead, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from adaperceiver_jax.data.sample import Sample


@dataclasses.dataclass(frozen=True)
class Loading:
    """Number of threads and processes that make batches; changes nothing of the batches."""

    threads: int = 4
    """Threads per process."""
    workers: int = 0
    """Processes beside this one, each on a core of its own; -1: one a core, less one."""
    prefetch: int = 4
    """Batches made ahead, by all together, and at least one by each."""

    def processes(self) -> int:
        """The number of processes that are started."""
        return self.workers if self.workers >= 0 else max(1, len(cores()) - 1)


IN_THREADS = Loading()


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Threads and processes started in it get no Ctrl-C and no SIGTERM, not even while they start:
    both may be sent to all processes of a run, and are the business of the one that trains."""
    resource_tracker.ensure_running()  # which would undo it while it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(own_cores: list[int], index: int, count: int) -> None:
    """Takes a core, and ends when the process that trains does, however that ends."""
    del count
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {own_cores[index % len(own_cores)]})
    end_with_parent()


def end_with_parent() -> None:
    """Has this process end when the one that started it is gone, which may have been killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class LoaderEndedError(RuntimeError):
    """A process that loads is gone, and not by `close`."""


class Batches:
    """Batches in their order, made by threads or processes that end with `close`."""

    def __init__(self, load: Callable[[int], Sample], size: int, count: int, by: Loading) -> None:
        """`count` samples by their number, in batches of `size`."""
        workers = min(by.processes(), -(-count // size)) if by.workers else 0
        samples = grain.MapDataset.range(count).map(load).batch(size)
        ahead = max(by.threads, 1 if workers else by.prefetch)
        options = grain.ReadOptions(by.threads, ahead)
        batches = samples.to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=max(1, by.prefetch // workers)
                ),
                worker_init_fn=functools.partial(_begin_worker, cores()),
            )
            atexit.register(self.close)  # before Python waits for processes that do not know of it
        self._batches: Any = iter(batches)
        self._to_start = workers > 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Sample:
        try:
            with spared() if self._to_start else contextlib.nullcontext():
                batch = next(self._batches)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise LoaderEndedError(
                "a process that loads images was ended from outside. If memory ran out: fewer "
                "config.data.workers or config.data.prefetch"
            ) from error
        self._to_start = False
        # Plain arrays: those of a worker lie in shared memory, which is freed as they are dropped.
        return {name: x if type(x) is np.ndarray else np.array(x) for name, x in batch.items()}

    def close(self) -> None:
        """Ends the processes and frees their memory."""
        atexit.unregister(self.close)
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
