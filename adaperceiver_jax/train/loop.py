"""The training loop, for any task: resume or begin, step, evaluate, save, hand on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from adaperceiver_jax.convert.hub import save_pretrained
from adaperceiver_jax.data.pipeline import to_devices
from adaperceiver_jax.data.sources import Opened
from adaperceiver_jax.models.params import count_params
from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.optim.schedules import make_schedule
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.evaluation import evaluate
from adaperceiver_jax.train.feed import Feed, open_data
from adaperceiver_jax.train.init_from import initialise, load_weights
from adaperceiver_jax.train.processes import Interrupt
from adaperceiver_jax.train.reports import (
    BAD_IMAGES,
    Progress,
    Trace,
    Writer,
    compiling,
    say,
    show_evaluation,
    sub_network_name,
)
from adaperceiver_jax.train.settings import Plan, Settings, make_plan
from adaperceiver_jax.train.sharding import (
    batch_sharding,
    check_batch,
    constant_shardings,
    make_mesh,
)
from adaperceiver_jax.train.step import Programs, TrainState, make_programs
from adaperceiver_jax.train.task import Metrics, Task
from adaperceiver_jax.train.workdir import MODEL, check_workdir, describe_run, find_workdir

log = logging.getLogger(__name__)

LAG = 2
"""Steps that may be under way before the metrics of the first of them are looked at."""


class NotFiniteError(RuntimeError):
    """A step whose loss, gradient or update is not a finite number."""


class TooManyBadImagesError(RuntimeError):
    """An epoch with more images that do not decode than the config allows."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    step: int
    finished: bool
    """False: it was asked to stop; the next call goes on from there."""
    metrics: dict[str, float]
    """Metrics of the last evaluation."""


class Checked(NamedTuple):
    """What a run needs whatever its task, found to be right."""

    mesh: Mesh
    plan: Plan
    opened: Opened


def train(
    settings: Settings, task: Task, workdir: str | os.PathLike, checked: Checked | None = None
) -> Result:
    """Trains in `workdir`, from where an earlier call there stopped.

    Everything that can be wrong with the settings is a ValueError before anything is compiled.
    `checked` is the result of `check`, if that was called before.
    """
    workdir = find_workdir(workdir)
    mesh, plan, opened = checked or check(settings)
    place = batch_sharding(mesh)
    feed = Feed(settings, task, opened, place)
    schedule, programs = programs_of(settings, task, mesh, plan)
    constants = task.constants()
    shardings = constant_shardings(constants, mesh, settings.mesh.rules)
    check_workdir(workdir)

    with compiling(), Checkpoints(workdir, settings.checkpoint, best_by(task)) as checkpoints:
        constants = jax.device_put(constants, shardings)
        say(f"{workdir}: {headline(settings, programs, plan)}")
        state, notes = begin(settings, task, programs, checkpoints, feed)
        step = first = int(state.step)
        if first:
            say(f"going on from step {first} of {plan.last}, {workdir}")
        arrays = {"state": programs.state, "constants": constants}
        describe_run(workdir, settings, arrays, resumed=first > 0)

        watch = Watch(settings, feed, checkpoints, notes)
        writer = Writer(workdir, first - bool(notes.owed))
        refresher, flops = programs.refresher, task.train_flops(programs.state.ema)
        progress = Progress(
            first, plan.last, settings.batch_size, flops, workdir.name, lambda: refresher.waited
        )
        batches = to_devices(feed.training(first, plan.last), place)
        trace = Trace(settings.profile, workdir)
        closing = contextlib.closing
        with Interrupt() as interrupt, closing(batches), closing(writer), closing(trace):

            def validate() -> dict[str, float] | None:
                """Metrics of all sub-networks, by EMA weights; None: asked to stop meanwhile."""
                began = time.perf_counter()
                with closing(to_devices(feed.evaluation(), place)) as images:
                    found = evaluate(task, programs, state, constants, images, interrupt.asked)
                if found is not None:
                    watch.check_finite(step, found)
                    show_evaluation(workdir.name, step, found, time.perf_counter() - began)
                    notes.evaluated = found
                return found

            def stopped() -> Result:
                checkpoints.wait()
                say(f"asked to stop: saved at step {step}; the same command goes on from there")
                return Result(step, False, notes.evaluated)

            if notes.owed:  # the evaluation in which an earlier call was asked to stop
                found = validate()
                if found is None:
                    return stopped()
                writer.write(step, {**notes.owed["row"], **found}, notes.owed["speed"])
                checkpoints.add_metrics(step, found)
                notes.owed = {}

            for step in range(first + 1, plan.last + 1):
                trace.step(step - first)
                state, metrics = programs.update(state, constants, next(batches), step)
                watch.add(step, metrics)
                asked = interrupt.asked()
                checkpoints.check()
                logs = step % settings.log_every == 0 or step == plan.last
                evaluates = step % plan.evaluate == 0 or step == plan.last
                saves = step % plan.save == 0 or step == plan.last or asked
                saves |= evaluates and settings.checkpoint.keep_best > 0
                values = watch.look(0 if logs or evaluates or saves else LAG)
                row, speed = {}, {}
                if logs:
                    row = {**values, "lr": float(schedule(step - 1))}
                    speed = progress.speed(step)
                    progress.show(step, row, speed)
                with progress.paused():
                    if evaluates:
                        found = validate()
                        if found is None:
                            notes.owed = {"row": row, "speed": speed}
                            save(checkpoints, programs, state, step, notes)
                            return stopped()
                        row |= found
                    if row:
                        writer.write(step, row, speed)
                    if saves:
                        save(checkpoints, programs, state, step, notes, best=evaluates)
                if asked and step < plan.last:
                    return stopped()
            checkpoints.wait()
        hand_on(task, state, workdir)
        return Result(step, True, notes.evaluated)


def check(settings: Settings) -> Checked:
    """The run's devices, steps and data; ValueError for what is wrong with a run whatever its task:
    before a teacher is loaded."""
    mesh = make_mesh(settings.mesh)
    check_batches(settings, mesh)
    opened = open_data(settings.data)
    return Checked(mesh, make_plan(settings, len(opened.train.source)), opened)


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


def best_by(task: Task) -> str:
    """The metric of the whole model by which the best checkpoints are kept."""
    sign, name = ("-", task.metric[1:]) if task.metric.startswith("-") else ("", task.metric)
    return f"{sign}{sub_network_name(task.sub_networks()[0])}/{name}"


def headline(settings: Settings, programs: Programs, plan: Plan) -> str:
    """The size of a run: parameters, steps, devices."""
    mesh = programs.mesh
    total, trained = count_params(programs.state.params), count_params(programs.state.ema)
    return (
        f"{total / 1e6:.2f} M parameters"
        + (f", {trained / 1e6:.2f} M of them trained" if trained < total else "")
        + f"; {plan.last} steps of {settings.batch_size} images on "
        f"{mesh.size} x {jax.devices()[0].device_kind} "
        f"(data {mesh.shape['data']}, fsdp {mesh.shape['fsdp']})"
    )


@dataclasses.dataclass
class Notes:
    """The part of a checkpoint that is JSON, next to its arrays."""

    position: dict[str, Any]
    """The values that, with the number of steps, decide which images come next."""
    evaluated: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the last evaluation."""
    owed: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """The 'row' and 'speed' of a step in whose evaluation the run was asked to stop."""
    bad_images: int = 0
    """Images of the epoch that did not decode, up to the last step looked at."""


def begin(
    settings: Settings, task: Task, programs: Programs, checkpoints: Checkpoints, feed: Feed
) -> tuple[TrainState, Notes]:
    """The state to start from: of the newest checkpoint that is whole, or of `init_from`, or
    fresh."""
    shapes, position = programs.state, feed.position()
    restored = checkpoints.restore(shapes)
    if restored is not None:
        notes = Notes(**restored.data)
        for name, value in position.items():
            before = notes.position.get(name)
            if before != value:
                log.warning(
                    "%s was %r before this run was resumed and is %r now: the order of its images "
                    "does not go on as it began",
                    name,
                    before,
                    value,
                )
        notes.position = position
        return programs.resume(restored.state), notes
    key = jax.random.key(settings.seed)
    if not settings.init_from:
        return programs.init(key), Notes(position)
    params, report = initialise(
        lambda: programs.init(key).params,
        shapes.params,
        load_weights(settings.init_from, task.model),
        settings.init_skip,
        settings.init_from,
    )
    say(f"{settings.init_from}: {report}")
    return programs.begin(params), Notes(position)


class Watch:
    """The metrics of steps that may still be under way: each is looked at, in order."""

    def __init__(
        self, settings: Settings, feed: Feed, checkpoints: Checkpoints, notes: Notes
    ) -> None:
        self._allowed, self._feed = settings.data.bad_images, feed
        self._checkpoints, self._notes = checkpoints, notes
        self._pending: collections.deque[tuple[int, Metrics]] = collections.deque()

    def add(self, step: int, metrics: Metrics) -> None:
        """A step that was begun, and its metrics, still on the devices."""
        self._pending.append((step, metrics))

    def look(self, keep: int) -> dict[str, float]:
        """The metrics of the newest step that is done, all but `keep`; NotFiniteError for any
        that is not finite."""
        values: dict[str, float] = {}
        while len(self._pending) > keep:
            step, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            names = ["loss", *(name for name in metrics if name != "loss")]
            values = {name: float(metrics[name]) for name in names}
            self.check_finite(step, values)
            if BAD_IMAGES in values:
                values[BAD_IMAGES] = self._count_bad(step, int(values[BAD_IMAGES]))
        return values

    def check_finite(self, step: int, values: Mapping[str, float]) -> None:
        """NotFiniteError, naming the last good checkpoint, unless all are finite."""
        if all(math.isfinite(value) for value in values.values()):
            return
        self._checkpoints.wait()
        saved = self._checkpoints.steps()
        good = (
            f"The last good checkpoint is {self._checkpoints.folder / str(saved[-1])}"
            if saved
            else "No checkpoint was saved before"
        )
        parts = ", ".join(f"{name}={value:g}" for name, value in values.items())
        raise NotFiniteError(
            f"step {step} is not finite: {parts}. Nothing of it was saved. {good}; the same "
            "command goes on from there, with a lower --config.optimizer.lr perhaps"
        )

    def _count_bad(self, step: int, more: int) -> int:
        """The number in the epoch so far; TooManyBadImagesError if it is above the limit."""
        if step > 1 and self._feed.epoch(step) != self._feed.epoch(step - 1):
            self._notes.bad_images = 0
        self._notes.bad_images += more
        if self._notes.bad_images > self._allowed:
            raise TooManyBadImagesError(
                f"step {step}: {self._notes.bad_images} images of this epoch do not decode, more "
                f"than config.data.bad_images={self._allowed}; they are named above. Mend them, or "
                "allow more; the same command goes on from the last checkpoint"
            )
        return self._notes.bad_images


def save(
    checkpoints: Checkpoints,
    programs: Programs,
    state: TrainState,
    step: int,
    notes: Notes,
    best: bool = False,
) -> None:
    """Saves a step; `best`: it was just evaluated, and may be the best."""
    state = programs.to_save(state, step)
    data = dataclasses.asdict(notes)
    checkpoints.save(state, step, data, notes.evaluated if best else None)


def hand_on(task: Task, state: TrainState, workdir: Path) -> None:
    """Leaves the finished EMA weights as a folder that `from_pretrained` reads."""
    params = state.ema_params()
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        save_pretrained(task.model, jax.device_get(params), workdir / MODEL)
