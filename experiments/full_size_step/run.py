"""The paper's full-size model takes real stage 3 steps on a CPU, at batch 2, in under 20 GB.

python -m experiments.full_size_step.run               # two steps, some 5 minutes on 2 cores
python -m experiments.full_size_step.run --refresh     # the second one with new eigenvectors: more
                                                       # memory, minutes more; not finished yet

Everything is of configs/stage3_width.py and goes through what `main.py` runs: 11,821 classes, a
ViT-H/14 as teacher, a width a sample, readouts at every granularity and depth, mixup, SOAP with
factors of up to 8192, clipping, EMA, blocks in a loop and recomputed in the backward, bfloat16
matmuls. Only these differ, for want of 256 chips and ImageNet-12k: the batch, fresh weights (the
teacher's too), and the images, scenes rendered at 224 pixels. Scenes have 10 classes, which here
are the first of the 11,821; distillation learns from the teacher and never looks at them.

Prints every part of each step's loss, its seconds, and the largest memory the process has had;
exits with 1 if that is above 20 GB (1e9 bytes).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from adaperceiver_jax.data.augment import Preparation
from adaperceiver_jax.data.pipeline import TrainOrder, to_devices, train_batches
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.models.params import count_params
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.loop import programs_of
from adaperceiver_jax.train.plan import make_plan
from adaperceiver_jax.train.settings import from_config
from adaperceiver_jax.train.sharding import batch_sharding, constant_shardings, make_mesh
from adaperceiver_jax.train.state import TrainState
from configs import stage3_width

MOST = 20e9
"""Bytes."""


def peak() -> float:
    """The largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def size(tree: Any) -> int:
    """Bytes of a tree's arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def show_memory(state: TrainState, teacher: Any) -> None:
    """The table of what stays in memory between steps."""
    soap = state.opt_state[0]
    rows = {
        "parameters": state.params,
        "their EMA": state.ema,
        "SOAP: first moments": soap.first,
        "SOAP: second moments": soap.second,
        "SOAP: second moments, rotated": soap.rotated,
        "SOAP: factors": soap.factors,
        "SOAP: eigenvectors": soap.eigenvectors,
        "the teacher's parameters": teacher,
    }
    print("held between steps              arrays      GB")
    for name, tree in rows.items():
        print(f"{name:30s} {len(jax.tree.leaves(tree)):7d} {size(tree) / 1e9:7.2f}")
    total = sum(size(tree) for tree in rows.values())
    print(f"{'together':30s} {'':7s} {total / 1e9:7.2f}\n", flush=True)


def settings(refresh: bool, max_dim: int) -> RunConfig:
    """Stage 3's, with what the module names changed."""
    changes = {
        "init_from": "''",
        "teacher.path": "made-up",
        "batch_size": 2,
        "data.source": "scenes",
        "data.train_count": 1000,
        "optimizer.max_preconditioner_dim": max_dim,
    }
    if refresh:
        changes["optimizer.start_preconditioning_step"] = 2
    argument = ",".join(f"{key}={value}" for key, value in changes.items())
    return from_config(RunConfig, stage3_width.get_config(argument).to_dict())


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the steps; 1 if they took too much memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2, help="steps (2)")
    parser.add_argument(
        "--refresh", action="store_true", help="the second step has new eigenvectors, by LAPACK"
    )
    parser.add_argument(
        "--max-dim",
        type=int,
        default=8192,
        help="SOAP's largest factor (8192, as in the paper, of which there are two; each takes "
        "minutes to decompose)",
    )
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.max_dim < 1:
        parser.error("--steps and --max-dim must be at least 1")

    config = settings(options.refresh, options.max_dim)
    mesh = make_mesh(config.mesh)
    began = time.perf_counter()

    def report(what: str) -> None:
        seconds = time.perf_counter() - began
        print(f"{what}: after {seconds:.0f} s, peak {peak() / 1e9:.2f} GB", flush=True)

    task = make_task(config)
    jax.block_until_ready(task.constants())
    report("teacher made")
    _, programs = programs_of(config, task, mesh, make_plan(config, config.data.train_count))
    constants = task.constants()
    constants = jax.device_put(constants, constant_shardings(constants, mesh))
    state = jax.block_until_ready(programs.init(jax.random.key(config.seed)))
    report("state made")
    print(
        f"\n{count_params(state.params) / 1e6:.2f} M parameters, "
        f"{config.model.num_classes} classes, teacher {count_params(constants) / 1e6:.2f} M, "
        f"batch {config.batch_size}, {config.compute.dtype}, {jax.devices()[0].device_kind}\n"
    )
    show_memory(state, constants)

    scenes = Scenes(config.data.train_count, config.data.image_size, "train", config.data.seed)
    prepared = Preparation(size=config.data.size, inputs=task.inputs)
    order = TrainOrder(scenes, config.seed, prepared.train)
    samples = train_batches(order, config.batch_size, 0, options.steps)
    batches = to_devices(
        ({name: sample[name] for name in task.inputs} for sample in samples),
        batch_sharding(mesh),
    )
    before = 0.0
    with contextlib.closing(batches):
        for step in range(1, options.steps + 1):
            start = time.perf_counter()
            state, metrics = programs.update(state, constants, next(batches), step)
            jax.block_until_ready(state)
            waited, before = programs.refresher.waited - before, programs.refresher.waited
            show_step(step, metrics, time.perf_counter() - start, waited)

    good = peak() <= MOST
    print(
        f"{'Held' if good else 'MISSED'}: {options.steps} steps in {peak() / 1e9:.2f} GB, at most "
        f"{MOST / 1e9:.0f}."
    )
    return 0 if good else 1


def show_step(step: int, metrics: Mapping[str, jax.Array], seconds: float, waited: float) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise FloatingPointError(f"step {step} is not finite: {values}")
    parts = ", ".join(f"{name} {values[name]:.5g}" for name in sorted(values, key=_place))
    remarks = [f"{seconds:.0f} s"]
    if step == 1:
        remarks.append("compilation included")
    if waited:
        remarks.append(f"{waited:.0f} s of them for new eigenvectors")
    print(f"step {step}: {parts}; {', '.join(remarks)}; peak {peak() / 1e9:.2f} GB", flush=True)


def _place(name: str) -> tuple[bool, str]:
    return name != "loss", name


if __name__ == "__main__":
    sys.exit(main())
