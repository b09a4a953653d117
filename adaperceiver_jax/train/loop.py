"""The training loop, for any task: resume or begin, step, evaluate, save, hand on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from adaperceiver_jax.convert.hub import save_pretrained
from adaperceiver_jax.data.pipeline import to_devices
from adaperceiver_jax.data.sources import Opened
from adaperceiver_jax.models.params import count_params
from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.optim.schedules import make_schedule
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.compiling import Compiling
from adaperceiver_jax.train.evaluation import evaluate
from adaperceiver_jax.train.feed import Feed, open_data
from adaperceiver_jax.train.init_from import initialise, load_weights
from adaperceiver_jax.train.interrupt import Interrupt
from adaperceiver_jax.train.metrics import (
    BAD_IMAGES,
    Progress,
    Writer,
    say,
    show_evaluation,
    sub_network_name,
)
from adaperceiver_jax.train.plan import Plan, make_plan
from adaperceiver_jax.train.settings import Settings
from adaperceiver_jax.train.sharding import (
    batch_sharding,
    check_batch,
    constant_shardings,
    describe,
    make_mesh,
)
from adaperceiver_jax.train.state import TrainState
from adaperceiver_jax.train.step import Metrics, Programs, make_programs
from adaperceiver_jax.train.task import Task
from adaperceiver_jax.train.trace import Trace
from adaperceiver_jax.train.workdir import check_workdir, find_workdir

log = logging.getLogger(__name__)

CONFIG = "config.json"
SHARDINGS = "shardings.txt"
MODEL = "model"
"""The folder, in a run's, that its finished weights are left in."""
LAG = 2
"""Steps that may be under way before the metrics of the first of them are looked at."""


def write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


class NotFiniteError(RuntimeError):
    """A step whose loss, gradient or update is not a finite number."""


class TooManyBadImagesError(RuntimeError):
    """An epoch with more images that do not decode than the config allows."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    step: int
    finished: bool
    """False: it was asked to stop, and goes on where it is when called again."""
    metrics: dict[str, float]
    """Of the last evaluation."""


def check(settings: Settings) -> Opened:
    """The run's data; ValueError for what is wrong with a run whatever its task: before a teacher
    is loaded."""
    check_batches(settings, make_mesh(settings.mesh))
    opened = open_data(settings.data)
    make_plan(settings, len(opened.train.source))
    return opened


def check_batches(settings: Settings, mesh: Mesh) -> None:
    """ValueError unless batches can be split over the mesh."""
    check_batch(settings.batch_size, settings.accumulate, mesh, "config.batch_size")
    check_batch(settings.evaluation.batch_size, 1, mesh, "config.evaluation.batch_size")


def programs_of(
    settings: Settings, task: Task, mesh: Mesh, plan: Plan
) -> tuple[optax.Schedule, Programs]:
    """A run's learning rate and programs, on whatever devices the mesh has."""
    schedule = make_schedule(
        settings.schedule.name,
        settings.optimizer.lr,
        plan.last,
        warmup_steps=plan.warmup,
        warmup_lr=settings.schedule.warmup_lr,
        min_lr=settings.schedule.min_lr,
        power=settings.schedule.power,
    )
    optimizer_settings = dataclasses.asdict(settings.optimizer)
    for key in ("lr", "clip", "overlap"):
        del optimizer_settings[key]
    programs = make_programs(
        task,
        make_optimizer(learning_rate=schedule, mesh=mesh, **optimizer_settings),
        mesh,
        seed=settings.seed,
        clip=settings.optimizer.clip,
        ema=settings.ema,
        accumulate=settings.accumulate,
        train_only=settings.train_only,
        rules=settings.mesh.rules,
        reduce_in=settings.mesh.gradients,
        overlap=settings.optimizer.overlap,
    )
    return schedule, programs


def train(
    settings: Settings, task: Task, workdir: str | os.PathLike, opened: Opened | None = None
) -> Result:
    """Trains in `workdir`, from where an earlier call there stopped.

    Everything that can be wrong with the settings is a ValueError before anything is compiled.
    `opened` is what `check` gave, if it was asked before.
    """
    workdir = find_workdir(workdir)
    opened = opened or check(settings)
    mesh = make_mesh(settings.mesh)
    feed = Feed(settings, task, opened, batch_sharding(mesh))
    plan = make_plan(settings, feed.images)
    schedule, programs = programs_of(settings, task, mesh, plan)
    constants = task.constants()
    shardings = constant_shardings(constants, mesh, settings.mesh.rules)
    check_workdir(workdir)
    with Compiling():
        constants = jax.device_put(constants, shardings)
        with Checkpoints(workdir, settings.checkpoint, _best(task)) as checkpoints:
            return Run(
                settings, task, workdir, plan, schedule, programs, constants, feed, checkpoints
            ).go()


def _best(task: Task) -> str:
    sign, name = ("-", task.metric[1:]) if task.metric.startswith("-") else ("", task.metric)
    return f"{sign}{sub_network_name(task.sub_networks()[0])}/{name}"


@dataclasses.dataclass
class Run:
    """The parts of one call of `train`, and the loop over them."""

    settings: Settings
    task: Task
    workdir: Path
    plan: Plan
    schedule: optax.Schedule
    programs: Programs
    constants: Any
    feed: Feed
    checkpoints: Checkpoints
    pending: collections.deque[tuple[int, Metrics]] = dataclasses.field(
        default_factory=collections.deque
    )
    """Steps whose metrics were not looked at yet."""
    evaluated: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the last evaluation."""
    owed: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """The 'row' and 'speed' of a step at whose evaluation the run was asked to stop."""
    bad_images: int = 0
    """Of the epoch, up to the last step looked at."""

    def go(self) -> Result:
        """All steps that are left."""
        state = self._begin()
        self._describe()
        first, last = int(state.step), self.plan.last
        writer = Writer(self.workdir, first - bool(self.owed))
        progress = Progress(
            first,
            last,
            self.settings.batch_size,
            self.task.train_flops(self.programs.state.ema),
            self.workdir.name,
        )
        batches = to_devices(self.feed.training(first, last), batch_sharding(self.programs.mesh))
        step, stopped = first, False
        trace = Trace(self.settings.profile, self.workdir)
        closing = contextlib.closing
        with Interrupt() as interrupt, closing(batches), closing(writer), closing(trace):
            if self.owed:
                row, speed = self.owed["row"], self.owed["speed"]
                stopped = not self._evaluate(state, step, row, interrupt)
                if not stopped:
                    self.owed = {}
                    writer.write(step, row, speed)
            while step < last and not stopped:
                step += 1
                trace.step(step - first)
                state, metrics = self.programs.update(state, self.constants, next(batches), step)
                self.pending.append((step, metrics))
                stopped = interrupt.asked()
                self.checkpoints.check()
                logs = step % self.settings.log_every == 0 or step == last
                evaluates = step % self.plan.evaluate == 0 or step == last
                saves = step % self.plan.save == 0 or step == last or stopped
                saves |= evaluates and self.settings.checkpoint.keep_best > 0
                values = self._look(0 if logs or evaluates or saves else LAG)
                row, speed = {}, {}
                if logs:
                    row = {**values, "lr": float(self.schedule(step - 1))}
                    speed = progress.speed(step, self.programs.refresher.waited)
                    progress.show(step, row, speed)
                began, waited = time.perf_counter(), self.programs.refresher.waited
                if evaluates and not self._evaluate(state, step, row, interrupt):
                    stopped, self.owed = True, {"row": row, "speed": speed}
                if row and not self.owed:
                    writer.write(step, row, speed)
                if saves or stopped:
                    self._save(state, step, fresh=evaluates and not self.owed)
                waited = self.programs.refresher.waited - waited
                progress.pause(time.perf_counter() - began - waited)
            self.checkpoints.wait()
        if stopped and (step < last or self.owed):
            say(f"asked to stop: saved at step {step}; the same command goes on from there")
            return Result(step, False, self.evaluated)
        self._hand_on(state)
        return Result(step, True, self.evaluated)

    def _begin(self) -> TrainState:
        """The state to start from: of the newest checkpoint that is whole, or of `init_from`, or
        fresh."""
        settings, shapes = self.settings, self.programs.state
        total, trained = count_params(shapes.params), count_params(shapes.ema)
        mesh = self.programs.mesh
        say(
            f"{self.workdir}: {total / 1e6:.2f} M parameters"
            + (f", {trained / 1e6:.2f} M of them trained" if trained < total else "")
            + f"; {self.plan.last} steps of {settings.batch_size} images on "
            f"{mesh.size} x {jax.devices()[0].device_kind} "
            f"(data {mesh.shape['data']}, fsdp {mesh.shape['fsdp']})"
        )
        restored = self.checkpoints.restore(shapes)
        if restored is not None:
            step = int(restored.state.step)
            say(f"going on from step {step} of {self.plan.last}, {self.workdir}")
            position = self.feed.position()
            changed = {k: v for k, v in position.items() if restored.data["position"].get(k) != v}
            for name, value in changed.items():
                log.warning(
                    "%s was %r before this run was resumed and is %r now: the order of its images "
                    "does not go on as it began",
                    name,
                    restored.data["position"].get(name),
                    value,
                )
            self.bad_images = restored.data.get(BAD_IMAGES, 0)
            self.evaluated, self.owed = restored.data["evaluated"], restored.data.get("owed", {})
            return self.programs.resume(restored.state)
        key = jax.random.key(settings.seed)
        if not settings.init_from:
            return self.programs.init(key)
        params, report = initialise(
            lambda: self.programs.init(key).params,
            shapes.params,
            load_weights(settings.init_from, self.task.model),
            settings.init_skip,
            settings.init_from,
        )
        say(f"{settings.init_from}: {report}")
        return self.programs.begin(params)

    def _describe(self) -> None:
        """Writes `config.json` and `shardings.txt`, of a run that the folder's checkpoints fit."""
        if jax.process_index() > 0:
            return
        self._warn_of_changes()
        text = json.dumps(dataclasses.asdict(self.settings), indent=2)
        write_text(self.workdir / CONFIG, text)
        arrays = {"state": self.programs.state, "constants": self.constants}
        write_text(self.workdir / SHARDINGS, describe(arrays))

    def _warn_of_changes(self) -> None:
        """Names the settings that the folder's earlier call had otherwise."""
        path = self.workdir / CONFIG
        if not path.exists() or not self.checkpoints.steps():
            return
        now = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        before = flatten_dict(json.loads(path.read_text()), sep=".")
        for name, value in flatten_dict(now, sep=".").items():
            if name in before and before[name] != value:
                log.warning("config.%s was %r before and is %r now", name, before[name], value)

    def _evaluate(
        self, state: TrainState, step: int, row: dict[str, float], interrupt: Interrupt
    ) -> bool:
        """Adds each sub-network's metrics over the validation images, by EMA weights, to the row.

        False: it was asked to stop first.
        """
        began = time.perf_counter()
        batches = to_devices(self.feed.evaluation(), batch_sharding(self.programs.mesh))
        with contextlib.closing(batches):
            found = evaluate(
                self.task, self.programs, state, self.constants, batches, interrupt.asked
            )
        if found is None:
            return False
        self._check_finite(step, found)
        show_evaluation(self.workdir.name, step, found, time.perf_counter() - began)
        row |= found
        self.evaluated = found
        return True

    def _look(self, keep: int) -> dict[str, float]:
        """The metrics of the newest step that is done, all but `keep`; NotFiniteError for any
        that is not finite."""
        values: dict[str, float] = {}
        while len(self.pending) > keep:
            step, metrics = self.pending.popleft()
            metrics = jax.device_get(metrics)
            names = ["loss", *(name for name in metrics if name != "loss")]
            values = {name: float(metrics[name]) for name in names}
            self._check_finite(step, values)
            if BAD_IMAGES in values:
                values[BAD_IMAGES] = self._count_bad(step, int(values[BAD_IMAGES]))
        return values

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        if all(math.isfinite(value) for value in values.values()):
            return
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        good = (
            f"The last good checkpoint is {self.checkpoints.folder / str(saved[-1])}"
            if saved
            else "No checkpoint was saved before"
        )
        parts = ", ".join(f"{name}={value:g}" for name, value in values.items())
        raise NotFiniteError(
            f"step {step} is not finite: {parts}. Nothing of it was saved. {good}; the same "
            "command goes on from there, with a lower --config.optimizer.lr perhaps"
        )

    def _count_bad(self, step: int, more: int) -> int:
        """Those of the epoch so far; TooManyBadImagesError if there are more than may be."""
        if step > 1 and self.feed.epoch(step) != self.feed.epoch(step - 1):
            self.bad_images = 0
        self.bad_images += more
        if self.bad_images > self.settings.data.bad_images:
            raise TooManyBadImagesError(
                f"step {step}: {self.bad_images} images of this epoch do not decode, more than "
                f"config.data.bad_images={self.settings.data.bad_images}; they are named above. "
                "Mend them, or allow more; the same command goes on from the last checkpoint"
            )
        return self.bad_images

    def _save(self, state: TrainState, step: int, fresh: bool) -> None:
        """fresh: what was last evaluated is this state."""
        data = {
            "position": self.feed.position(),
            "evaluated": self.evaluated,
            "owed": self.owed,
            BAD_IMAGES: self.bad_images,
        }
        state = self.programs.to_save(state, step)
        self.checkpoints.save(state, step, data, self.evaluated if fresh else None)

    def _hand_on(self, state: TrainState) -> None:
        """Leaves the finished EMA weights as a folder that `from_pretrained` reads."""
        params = state.ema_params()
        if jax.process_count() > 1:
            params = multihost_utils.process_allgather(params, tiled=True)
        if jax.process_index() == 0:
            save_pretrained(self.task.model, jax.device_get(params), self.workdir / MODEL)
