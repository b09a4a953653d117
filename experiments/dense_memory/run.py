"""How much of a 16 GB chip a full-size dense training step takes, by the TPU's own compiler.

python -m experiments.dense_memory.run      # needs libtpu (pip install -e '.[tpu]'), but no TPU

Compiles both programs of a step of configs/ade20k.py (518 x 518, batch 16, seven granularities up
to 512 tokens, SOAP) and of the others for one TPU v5e chip, and prints what the compiler allots. A
program that does not fit is an error of the compiler's. Takes some 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import jax

from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.tasks.shapes import make_step
from adaperceiver_jax.train.settings import from_config
from tools.pod_report.program import DoesNotFitError, compile_program
from tools.pod_report.topology import GIB, find_topology, layout

CHIP = "v5e:1x1"
RUNS = {
    "ADE20K, AdaPerceiver": ("ade20k", ""),
    "ADE20K, AdaPerceiver, mask transformer": ("ade20k", "dense.head=segmenter"),
    "NYUv2, AdaPerceiver": ("nyuv2", ""),
    "ADE20K, ViT-H/14": ("vit_ade20k", "vit=h"),
    "NYUv2, ViT-H/14": ("vit_nyuv2", "vit=h"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), help="of these alone")
    parser.add_argument("--set", default="", help="more of the config: key=value,key=value")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    topology = find_topology(CHIP)
    print(
        f"jax {jax.__version__}, one {topology.devices[0].device_kind} chip, a step of 16 images\n"
    )
    print("| run | program | held before (GiB) | made on the way | sum | compiled in (s) |")
    print("|---|---|---|---|---|---|", flush=True)
    for label in options.runs or RUNS:
        name, argument = RUNS[label]
        argument = ",".join(part for part in (argument, options.set) if part)
        module = importlib.import_module(f"configs.{name}")
        step = make_step(
            from_config(RunConfig, module.get_config(argument).to_dict()), topology.devices
        )
        mesh = layout(step.programs.mesh)
        for what, program, shapes, donated in (
            ("gradients", step.programs.gradients, step.gradients, "opt_state"),
            ("update", step.programs.apply, step.apply, "state"),
        ):
            try:
                found = compile_program(what, program, shapes, donated, mesh, topology.chip)
            except DoesNotFitError as error:
                cells = f"- | does not fit: {error} | - | -"
            else:
                memory = found.memory
                amounts = (
                    memory.arguments,
                    memory.temporaries + memory.results,
                    memory.total,
                )
                cells = " | ".join(f"{amount / GIB:.2f}" for amount in amounts)
                cells += f" | {found.seconds:.0f}"
            print(f"| {label} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
