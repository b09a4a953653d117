"""Saving and finding a run's state: asynchronous, whole or not at all, the last and the best."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from adaperceiver_jax.optim.stacks import STACK_ROWS
from adaperceiver_jax.train.fingerprint import fingerprints
from adaperceiver_jax.train.processes import wait_for_all
from adaperceiver_jax.train.settings import CheckpointSettings
from adaperceiver_jax.train.state import TrainState
from adaperceiver_jax.train.writing import Failures, telling

T = TypeVar("T")

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
PARAMS, EMA, OPTIMIZER, MEMORY, DATA = "params", "ema", "optimizer", "memory", "data"
UPCOMING = "upcoming"
_PRINTS = "fingerprints"


_LOOK = 0.02
"""Seconds between two looks at whether a checkpoint is written."""


class DamagedError(Exception):
    """A checkpoint that does not hold what was saved."""


class NotWrittenError(OSError):
    """A checkpoint that could not be written."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Where a run goes on."""

    state: TrainState
    data: dict[str, Any]
    """What was saved beside it."""


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
        keep: list[Any] = []
        best_fn = None
        if settings is not None:
            keep.append(policies.LatestN(settings.keep_last))
            if settings.keep_best and metric:
                best_fn = _value_of(metric)
                best = policies.BestN(
                    get_metric_fn=best_fn,
                    n=settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
                keep.append(best)
        # By name: otherwise a manager does not know what an earlier one has saved.
        self._failures = Failures()
        trees = (PARAMS, EMA, OPTIMIZER, MEMORY, UPCOMING)
        self._handlers: dict[str, Any] = {
            **{name: telling(ocp.StandardCheckpointHandler(), self._failures) for name in trees},
            DATA: telling(ocp.JsonCheckpointHandler(), self._failures),
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
        """Of the checkpoints there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        step: int,
        data: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Copies the state and returns; the writing goes on behind. NotWrittenError: that before
        could not be written."""
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

    def restore(self, shapes: TrainState) -> Restored | None:
        """The newest checkpoint that holds what was saved, onto the shardings of `shapes`.

        None if there are none. Damaged ones are named in a warning and set aside. ValueError if
        the run's arrays are others than the checkpoint's, or every checkpoint is damaged.
        """
        damaged: list[str] = []
        steps = self.steps()
        for step in reversed(steps):
            try:
                restored = self._read(step, shapes)
            except DamagedError as error:
                log.warning("checkpoint %s is damaged and passed over: %s", self._at(step), error)
                damaged.append(str(step))
                continue
            self._set_aside(damaged)
            return restored
        if steps:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {', '.join(map(str, steps))} can be read; "
                "to start anew, move the folder away"
            )
        return None

    def restore_weights(
        self, shapes: Any, item: str = EMA, step: int | None = None
    ) -> tuple[int, Any]:
        """(step, weights) of the newest checkpoint that is whole; reads nothing else.

        Args:
          shapes: a tree of jax.ShapeDtypeStruct, or None for the checkpoint's own on this
            process's first device.
          item: PARAMS or EMA.
          step: of the checkpoint that is wanted and no other.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                there = ", ".join(map(str, steps)) or "none"
                raise ValueError(f"{self.folder}: has no checkpoint of step {step}, but {there}")
            steps = [step]
        for step in reversed(steps):
            try:
                wanted = self._stored(step, item) if shapes is None else shapes
                return step, self._read_items(step, {item: wanted})[item]
            except DamagedError as error:
                log.warning("checkpoint %s is damaged and passed over: %s", self._at(step), error)
        raise ValueError(f"{self.folder}: holds no checkpoint that can be read")

    def check(self) -> None:
        """NotWrittenError if a checkpoint could not be written, as far as is known by now."""
        if self._failures:
            raise self._failure(self._failures[0])

    def wait(self) -> None:
        """Until what was begun is written; NotWrittenError if it could not be."""
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

    def _set_aside(self, steps: list[str]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                place = self.folder / f"damaged-{step}"
                count = 1
                while place.exists():
                    count += 1
                    place = self.folder / f"damaged-{step}-{count}"
                self._at(int(step)).rename(place)
        wait_for_all("damaged checkpoints set aside")
        self._manager.reload()

    def _read(self, step: int, shapes: TrainState) -> Restored:
        wanted = _items(shapes)
        found = self._read_items(step, wanted, optional=(UPCOMING,))
        trained = jax.tree_util.tree_map_with_path(
            lambda path, _: _pick(found[EMA], path), shapes.ema
        )
        number = jax.device_put(jax.numpy.int32(step), shapes.step.sharding)
        memory = found.get(MEMORY, {})
        upcoming = found.get(UPCOMING, {})
        state = TrainState(number, found[PARAMS], trained, found[OPTIMIZER], memory, upcoming)
        return Restored(state, found[DATA])

    def _stored(self, step: int, item: str) -> Any:
        """The shapes of an item as it was saved, for this process's first device."""
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            metadata = self._manager.item_metadata(step)[item]
            if metadata is None:
                raise ValueError(f"{item} does not say what it holds")
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                _plain(metadata),
            )
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
    """What `act` gives, if it does so in all processes; else DamagedError in all: one may read what
    is damaged and another not, but what follows they do together."""
    problem = ""
    try:
        result = act()
    except DamagedError as error:
        problem = str(error)
    except Exception as error:
        problem = _first_line(error)
    if problems := list(filter(None, wait_for_all(f"checkpoint {step}", problem))):
        raise DamagedError(problems[0])
    return result


def _items(state: TrainState) -> dict[str, Any]:
    """What is saved of a state, by item."""
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


def _plain(metadata: Any) -> Any:
    return getattr(metadata, "tree", metadata)


def _names(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape; of the optimizer's stacks with as many rows as there are blocks."""
    names = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, shape = "/".join(_key(entry) for entry in path), tuple(leaf.shape)
        rows = STACK_ROWS.search(name)
        names[name] = (int(rows[1]), *shape[1:]) if rows and shape[0] >= int(rows[1]) else shape
    return names


def _key(entry: Any) -> str:
    """A step of a path, the same for a tuple, a list and the dict they are stored as."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


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


def _pick(tree: Any, path: tuple) -> Any:
    for entry in path:
        tree = tree[entry.key]
    return tree
