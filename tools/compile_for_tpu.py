"""Compiles a training step for TPUs that nobody needs to own, and says what it would take.

python tools/compile_for_tpu.py --config=configs/stage3_width.py --topology v5e:16x16
python tools/compile_for_tpu.py --config=configs/stage3_width.py:mesh.fsdp=16,batch_size=1024 \\
    --config=configs/stage1_tokens.py --topology v5e:8x8 --topology v5p:4x4x4

Needs libtpu (pip install -e '.[tpu]'), but no TPU, no images and no weights. Both programs of the
step that main.py runs are compiled by the TPU's own compiler, every config for every topology: some
two minutes a program at the paper's size on 2 cores. What the compiler made of them is read back:

  bytes a chip against its HBM, and the arrays that every chip holds whole though they are large;
  FLOPs a chip, what filling up the matrix unit's tiles and float32 passes make of them;
  collectives: kind, axes of the mesh, dtype, how often, bytes;
  a step's time and MFU, estimated from these (the assumptions stand below the table);
  whether the step is lean: nothing to the host, no gathers but weights, gradients reduced once,
  donated memory used again, softmax kept on the chip, few FLOPs but the model's, and nothing that
  the counts cannot see: in loops of unknown length, or in kernels.

Prints Markdown, a page a step and a table of all at the end; progress goes to stderr. A step that
does not fit its chips has its row too, and the command then ends with 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from absl import logging

from adaperceiver_jax.models.params import count_params
from adaperceiver_jax.tasks.make import RunConfig, read_config
from adaperceiver_jax.train.loop import LAG
from adaperceiver_jax.train.sharding import WHOLE, held, way_of
from tools.pod_report.chips import CHIPS
from tools.pod_report.pages import ASSUMPTIONS, page, table
from tools.pod_report.program import DoesNotFitError, compile_program
from tools.pod_report.report import Report, replicated
from tools.pod_report.topology import Topology, find_topology, layout
from tools.shapes import Step, make_step

AHEAD = 2 + LAG
"""Batches on the chips beside the one that is used: those of the LAG steps that the loop has begun
behind it, and the two that `to_devices` has brought for the next. When the step is done a third is
brought, but then the next step uses the first of these."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="FILE[:ARGUMENT]",
        help="as main.py takes it: configs/NAME.py, configs/NAME.py:key=value,...; may be repeated",
    )
    parser.add_argument(
        "--topology",
        action="append",
        required=True,
        metavar="CHIP:SIDES",
        help=f"{', '.join(CHIPS)}; v5e:16x16, v4:4x4x4, ...; may be repeated",
    )
    return parser


def compile_step(name: str, config: RunConfig, topology: Topology, step: Step) -> Report:
    """Both programs of a config's step; DoesNotFitError where one needs more memory than there
    is."""
    programs, state = step.programs, step.programs.state
    mesh = layout(programs.mesh)
    batch = step.gradients[-1]
    trained = step.apply[1]
    whole = replicated({"state": state, "constants": step.constants})
    ways = {name: way_of(name.removeprefix("state/"), config.mesh.rules) for name, _ in whole}
    compiled = []
    for what, program, arguments, donated in (
        ("gradients", programs.gradients, step.gradients, "opt_state"),
        ("apply", programs.apply, step.apply, "state"),
    ):
        say(f"{name} on {topology.name}: compiling {what} ...")
        compiled.append(compile_program(what, program, arguments, donated, mesh, topology.chip))
        say(f"{name} on {topology.name}: {what} took {compiled[-1].seconds:.0f} s")
    return Report(
        name=name,
        topology=topology,
        layout=mesh,
        batch=config.batch_size,
        model_flops=step.task.train_flops(trained) * config.batch_size / mesh.size,
        trained=count_params(trained),
        gradients=compiled[0],
        apply=compiled[1],
        replicated=whole,
        meant=frozenset(name for name, way in ways.items() if way == WHOLE),
        beside=(
            held(state.ema) + AHEAD * held(batch),
            held(step.constants) + (1 + AHEAD) * held(batch),
        ),
    )


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints pages and the table."""
    options = make_parser().parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # what is compiled for is not what is here
    logging.set_verbosity(logging.ERROR)
    rows: list[Report | tuple[str, str, str]] = []
    try:
        configs = [(text, read_config(text)) for text in options.config]
        topologies = [find_topology(name) for name in options.topology]
        # All of them before any is compiled, which takes minutes: each may be refused.
        steps = [
            (name, config, topology, make_step(config, topology.devices))
            for name, config in configs
            for topology in topologies
        ]
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    version = importlib.metadata.version("libtpu")
    print(f"jax {jax.__version__}, libtpu {version}\n", flush=True)
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU it cannot be read
    stopped = False
    try:
        for name, config, topology, step in steps:
            try:
                report = compile_step(name, config, topology, step)
            except DoesNotFitError as error:
                say(f"{name} on {topology.name}: {error}")
                rows.append((name, topology.name, str(error)))
            else:
                rows.append(report)
                print(page(report), end="\n\n", flush=True)
    except KeyboardInterrupt:
        stopped = True
    if rows:
        print(table(rows), ASSUMPTIONS, sep="\n\n")
    if stopped:
        sys.exit(130)
    if not all(isinstance(row, Report) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
