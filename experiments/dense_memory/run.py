"""How much of a 16 GB chip a full-size dense training step takes, by the TPU's own compiler.

python -m experiments.dense_memory.run      # needs libtpu (pip install -e '.[tpu]'), but no TPU

Compiles both programs of a step of configs/ade20k.py (518 x 518, batch 16, seven granularities up
to 512 tokens, SOAP) and of the others for one TPU v5e chip, and prints what the compiler allots. A
program that does not fit is an error of the compiler's. Takes some 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.settings import from_config
from adaperceiver_jax.train.sharding import batch_sharding, replicated
from adaperceiver_jax.train.step import make_programs

CHIP, GIB = "v5e:1x1", 2**30
RUNS = {
    "ADE20K, AdaPerceiver": ("ade20k", ""),
    "ADE20K, AdaPerceiver, mask transformer": ("ade20k", "dense.head=segmenter"),
    "NYUv2, AdaPerceiver": ("nyuv2", ""),
    "ADE20K, ViT-H/14": ("vit_ade20k", "vit=h"),
    "NYUv2, ViT-H/14": ("vit_nyuv2", "vit=h"),
}


def one_chip() -> Mesh:
    """A mesh of one chip that is not there."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIP, chips_per_host_bounds=(1, 1, 1)
    )
    return Mesh(np.array(topology.devices[:1]).reshape(1, 1), ("data", "fsdp"))


def programs_of(config: RunConfig, mesh: Mesh) -> tuple[Any, Any, tuple, tuple]:
    """Both programs of a step, and the shapes they are called with."""
    task = make_task(config)
    settings = dataclasses.asdict(config.optimizer)
    lr, clip = settings.pop("lr"), settings.pop("clip")
    programs = make_programs(
        task,
        make_optimizer(learning_rate=lambda step: lr, **settings),
        mesh,
        seed=0,
        clip=clip,
        ema=config.ema,
        train_only=config.train_only,
    )
    state = programs.state
    maps = {"segmentation": np.uint8, "depth": np.float32}
    shape = (config.batch_size, *config.data.size)
    batch = {"image": ((*shape, 3), np.uint8)}
    batch |= {name: (shape, maps[name]) for name in task.inputs if name in maps}
    arrays = {
        name: jax.ShapeDtypeStruct(s, dtype, sharding=batch_sharding(mesh))
        for name, (s, dtype) in batch.items()
    }
    first = (state.params, state.opt_state, state.step, {}, arrays)
    grads = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(programs.gradients, *first)[0],
    )
    return programs.gradients, programs.apply, first, (state, grads)


def allotted(program: Any, arguments: tuple) -> str:
    """GiB of arguments, of what is made on the way and their sum, and seconds of compilation, as
    cells of a table; or what the compiler says of a program that does not fit."""
    began = time.perf_counter()
    try:
        memory = program.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needs = re.search(r"required for HLO temporaries \(([\d.]+)G\)", str(error))
        if needs is None:
            raise
        return f"- | {needs[1]}: does not fit | - | -"
    seconds = time.perf_counter() - began
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held, made = memory.argument_size_in_bytes / GIB, (memory.temp_size_in_bytes + results) / GIB
    return f"{held:.2f} | {made:.2f} | {held + made:.2f} | {seconds:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), help="of these alone")
    parser.add_argument("--set", default="", help="more of the config: key=value,key=value")
    options = parser.parse_args(arguments)
    mesh = one_chip()
    print(
        f"jax {jax.__version__}, one {mesh.devices.flat[0].device_kind} chip, a step of 16 images\n"
    )
    print("| run | program | held before (GiB) | made on the way | sum | compiled in (s) |")
    print("|---|---|---|---|---|---|", flush=True)
    for label in options.runs or RUNS:
        name, argument = RUNS[label]
        argument = ",".join(part for part in (argument, options.set) if part)
        module = importlib.import_module(f"configs.{name}")
        config = from_config(RunConfig, module.get_config(argument).to_dict())
        gradients, apply, first, second = programs_of(config, mesh)
        for what, program, shapes in (
            ("gradients", gradients, first),
            ("update", apply, second),
        ):
            print(f"| {label} | {what} | {allotted(program, shapes)} |", flush=True)


if __name__ == "__main__":
    main()
