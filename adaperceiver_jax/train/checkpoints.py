"""Saving and finding a run's state: asynchronous, whole or not at all, the last and the best."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import checkpoint_managers as policies

from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.optim.stacks import STACK_ROWS
from adaperceiver_jax.train.fingerprint import fingerprints
from adaperceiver_jax.train.processes import wait_for_all
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.sharding import by_path, placed
from adaperceiver_jax.train.step import TrainState

T = TypeVar("T")

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
PARAMS, EMA, OPTIMIZER, MEMORY, DATA = "params", "ema", "optimizer", "memory", "data"
UPCOMING = "upcoming"
_PRINTS = "fingerprints"
_METRICS = "metrics"
"""Orbax's name of a checkpoint's metrics, of the folder and of the JSON file in it."""
_LOOK = 0.02
"""Seconds between two looks at whether a checkpoint is written."""


class DamagedError(Exception):
    """A checkpoint that does not hold what was saved."""


class NotWrittenError(OSError):
    """A checkpoint that could not be written."""


class Restored(NamedTuple):
    """A state to go on from, and the data that was saved beside it."""

    state: TrainState
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, a folder each, named by the step.

    Each holds four items: `params` and `ema` (all weights; either loads alone), `optimizer` and
    `data` (JSON: where the data iterator stands, and a fingerprint of every array); where there are
    any, the task's `memory` and the `upcoming` eigenvectors.
    """

    def __init__(
        self, workdir: Path, settings: CheckpointSettings | None = None, metric: str = ""
    ) -> None:
        """Without settings it only reads.

        Args:
          metric: by which the best are kept; '-NAME': the lower the better.
        """
        self.folder = (workdir / FOLDER).absolute()
        keep: list[Any] = [] if settings is None else [policies.LatestN(settings.keep_last)]
        best_fn = None
        if settings is not None and settings.keep_best and metric:
            best_fn = _value_of(metric)
            best = policies.BestN(
                get_metric_fn=best_fn,
                n=settings.keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        # By name: otherwise a manager does not know what an earlier one has saved.
        self._failures: list[Exception] = []
        trees = (PARAMS, EMA, OPTIMIZER, MEMORY, UPCOMING)
        self._handlers: dict[str, Any] = {
            **{name: _telling(ocp.StandardCheckpointHandler(), self._failures) for name in trees},
            DATA: _telling(ocp.JsonCheckpointHandler(), self._failures),
        }
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep) if keep else None,
                best_fn=best_fn,  # without it the metrics are not written
                cleanup_tmp_directories=settings is not None,
                create=settings is not None,
                read_only=settings is None,
                save_interval_steps=1 if settings else 0,
            ),
            item_handlers=self._handlers,
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        step: int,
        data: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Copies the state and returns; the writing goes on behind. NotWrittenError if the save
        before could not be written."""
        if step in self._manager.all_steps():
            return
        self.wait()
        items = _items(state)
        with self._named():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                    **{DATA: ocp.args.JsonSave({**data, _PRINTS: fingerprints(items)})},
                ),
                metrics=dict(metrics or {}),  # None would be warned about
                force=True,
            )

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes how good a step is that was saved before it was evaluated."""
        file = self._at(step) / _METRICS / _METRICS
        if jax.process_index() == 0 and file.exists():  # absent where no best are kept
            write_bytes(file, json.dumps(dict(metrics)).encode())
        wait_for_all("metrics added")
        self._manager.reload()

    def restore(self, shapes: TrainState) -> Restored | None:
        """The newest checkpoint that holds what was saved, onto the shardings of `shapes`.

        None if there are none. Damaged ones are named in a warning and set aside. ValueError if
        the run's arrays are others than the checkpoint's, or every checkpoint is damaged.
        """
        steps = self.steps()
        restored, damaged = self._newest(steps, lambda step: self._read(step, shapes))
        if restored is not None:
            self._set_aside(damaged)
        elif steps:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {', '.join(map(str, steps))} can be read; "
                "to start anew, move the folder away"
            )
        return restored

    def restore_weights(self, item: str = EMA, step: int | None = None) -> tuple[int, Any]:
        """(step, weights) of the newest checkpoint that is whole; reads nothing else.

        The weights come to this process's first device.

        Args:
          item: PARAMS or EMA.
          step: of the checkpoint that is wanted and no other.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                there = ", ".join(map(str, steps)) or "none"
                raise ValueError(f"{self.folder}: has no checkpoint of step {step}, but {there}")
            steps = [step]

        def read(step: int) -> tuple[int, Any]:
            return step, self._read_items(step, {item: self._stored(step, item)})[item]

        found, _ = self._newest(steps, read)
        if found is None:
            raise ValueError(f"{self.folder}: holds no checkpoint that can be read")
        return found

    def _newest(self, steps: list[int], read: Callable[[int], T]) -> tuple[T | None, list[int]]:
        """The newest that is whole, as `read` gives it, and those after it, which are damaged and
        are named in warnings."""
        damaged: list[int] = []
        for step in reversed(steps):
            try:
                return read(step), damaged
            except DamagedError as error:
                log.warning("checkpoint %s is damaged and passed over: %s", self._at(step), error)
                damaged.append(step)
        return None, damaged

    def check(self) -> None:
        """NotWrittenError if a checkpoint could not be written, as far as is known by now."""
        if self._failures:
            raise self._failure(self._failures[0])

    def wait(self) -> None:
        """Waits until what was begun is written; NotWrittenError if it could not be."""
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(_LOOK)
        with self._named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of writing are NotWrittenError."""
        try:
            yield
        except Exception as error:
            raise self._failure(self._failures[0] if self._failures else error) from error

    def _failure(self, error: Exception) -> NotWrittenError:
        return NotWrittenError(f"{self.folder}: a checkpoint was not written: {_first_line(error)}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Closing waits for what is being written, and so for processes that may be gone: where one
        # of several fails, all end at once.
        if kind is None or jax.process_count() == 1:
            self.close()

    def _at(self, step: int) -> Path:
        return self.folder / str(step)

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if not steps:
            return
        for step in steps if jax.process_index() == 0 else ():
            name, count = f"damaged-{step}", 1
            while (self.folder / name).exists():
                count += 1
                name = f"damaged-{step}-{count}"
            self._at(step).rename(self.folder / name)
        wait_for_all("damaged checkpoints set aside")
        self._manager.reload()

    def _read(self, step: int, shapes: TrainState) -> Restored:
        found = self._read_items(step, _items(shapes), optional=(UPCOMING,))
        means = flatten_dict(found[EMA])
        state = TrainState(
            step=jax.device_put(jnp.int32(step), shapes.step.sharding),
            params=found[PARAMS],
            ema=unflatten_dict({path: means[path] for path in flatten_dict(shapes.ema)}),
            opt_state=found[OPTIMIZER],
            memory=found.get(MEMORY, {}),
            upcoming=found.get(UPCOMING, {}),
        )
        return Restored(state, found[DATA])

    def _stored(self, step: int, item: str) -> Any:
        """The shapes of an item as it was saved, for this process's first device."""
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            metadata = self._manager.item_metadata(step)[item]
            if metadata is None:
                raise ValueError(f"{item} does not say what it holds")
            return placed(getattr(metadata, "tree", metadata), place)
        except Exception as error:
            raise DamagedError(_first_line(error)) from error

    def _read_items(
        self, step: int, shapes: Mapping[str, Any], optional: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The named items and `data`, compared with their fingerprints.

        optional: items that are left out where they were not saved.
        """

        # Not by the manager: it would wait, after reading, for processes that could not read.
        def read(name: str, how: Any) -> Any:
            return self._handlers[name].restore(epath.Path(self._at(step)) / name, args=how)

        def look() -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
            data = dict(read(DATA, ocp.args.JsonRestore()))
            prints = data.pop(_PRINTS)
            saved = {name.partition("/")[0] for name in prints}
            there = [item for item in shapes if item in saved or item not in optional]
            return data, prints, {item: self._stored(step, item) for item in there}

        data, prints, stored = _together(step, look)
        for item, tree in stored.items():
            _check_same(tree, shapes[item], f"{self._at(step)}, {item}")
        # Not strict: stacks have as many rows of zeros as the devices ask for.
        args = {item: ocp.args.StandardRestore(shapes[item], strict=False) for item in stored}
        items = _together(step, lambda: {item: read(item, how) for item, how in args.items()})
        wrong = [name for name, value in fingerprints(items).items() if prints.get(name) != value]
        if wrong:
            raise DamagedError(f"{wrong[0]} ({len(wrong)} arrays in all) is not what was saved")
        return {**items, DATA: data}


def _together(step: int, act: Callable[[], T]) -> T:
    """The result of `act`, if all processes have one; else DamagedError in all: one may read what
    is damaged and another not, but what follows they do together."""
    problem = ""
    try:
        result = act()
    except Exception as error:
        problem = str(error) if isinstance(error, DamagedError) else _first_line(error)
    if problems := list(filter(None, wait_for_all(f"checkpoint {step}", problem))):
        raise DamagedError(problems[0])
    return result


def _items(state: TrainState) -> dict[str, Any]:
    """The trees of a state that are saved, by item."""
    items = {PARAMS: state.params, EMA: state.ema_params(), OPTIMIZER: state.opt_state}
    more = {MEMORY: state.memory, UPCOMING: state.upcoming}
    return items | {name: tree for name, tree in more.items() if tree}


def _value_of(metric: str) -> Callable[[Mapping[str, float]], float]:
    """The metric of a checkpoint, '-NAME' its negative; of one that was not evaluated, less than
    any."""
    sign, name = (-1, metric[1:]) if metric.startswith("-") else (1, metric)
    return lambda metrics: sign * metrics[name] if name in metrics else -math.inf


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _names(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape; stacks of the optimizer with as many rows as there are blocks."""
    names = {}
    for name, leaf in by_path(tree).items():
        shape = tuple(leaf.shape)
        rows = STACK_ROWS.search(name)
        names[name] = (int(rows[1]), *shape[1:]) if rows and shape[0] >= int(rows[1]) else shape
    return names


def _check_same(stored: Any, wanted: Any, what: str) -> None:
    """ValueError naming the arrays in which a checkpoint and the run differ."""
    theirs, ours = _names(stored), _names(wanted)
    different = sorted(
        name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
    )
    if different:
        some = "; ".join(
            f"{name} is {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here"
            for name in different[:3]
        )
        raise ValueError(
            f"{what}: the run's arrays are others than the checkpoint's ({some}; {len(different)} "
            "in all). Has config.model or config.optimizer changed? Take another --workdir, or "
            "start from these weights with config.init_from"
        )


class _Watched:
    """A future whose failure is noted."""

    def __init__(self, future: Any, failures: list[Exception]) -> None:
        self._future, self._failures = future, failures

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout=timeout)
        except Exception as error:
            self._failures.append(error)
            raise

    def cancel(self) -> Any:
        return self._future.cancel()


def _telling(handler: Any, failures: list[Exception]) -> Any:
    """The handler, which adds what it could not write to `failures` at once.

    Orbax keeps an error of one process until all have come to the end of the save, which the others
    do not: they wait for it. Not a class of its own: Orbax knows handlers' arguments by the class.
    """
    original = handler.async_save

    async def async_save(*args: Any, **keywords: Any) -> list[_Watched]:
        futures = await original(*args, **keywords)
        return [_Watched(future, failures) for future in futures or ()]

    handler.async_save = async_save
    return handler
