"""What a training step takes, and its program needs, computed in other ways.

python -m experiments.fast_paths.step                          # some 10 minutes on 2 cores
python -m experiments.fast_paths.step --only masked            # some 3
python -m experiments.fast_paths.step --batch 256 --dtype bfloat16

The step is the one from labels of configs/scratch.py, with AdamW, on all devices; samples have the
widths equally often. Each other way takes turns with the default: a loop over the blocks, which are
computed again in the backward pass but for their products; on one CPU hidden units that a sample's
width leaves out are skipped, not masked. Written out, without a loop, blocks are not computed
again: XLA finds everything computed already, and keeps it. A line a way: seconds to compile it,
once; MiB that its larger program needs with all that a run holds; seconds a step; the floor, of its
products at the best rate that XLA reached; and its time over the default's, turn by turn: the
median, the least and the most; and of the quickest steps.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp

from adaperceiver_jax.evaluate.machine import Ceilings, described, enough_memory
from adaperceiver_jax.evaluate.speed import Program
from adaperceiver_jax.evaluate.turns import note, spread, take_turns
from adaperceiver_jax.models import ffn
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.tasks.once_for_all import OnceForAll
from adaperceiver_jax.tasks.step_speed import step_program
from adaperceiver_jax.train.settings import from_config
from configs import scratch
from experiments.fast_paths import variants

DEFAULT = "a loop"
MASKED = "masked"
WAYS = {
    "three": "three blocks a round",
    "written": "written out",
    "kept": "a loop, everything kept",
    MASKED: "a loop, widths masked",
}
"""What the other ways are called."""


def argument_of(way: str, depth: int) -> str:
    """What a way adds to the config's argument."""
    return {
        "three": "compute.unroll=3",
        "written": f"compute.unroll={depth}",
        "kept": "compute.remat=False",
    }.get(way, "")


def config_of(batch: int, dtype: str, way: str = "") -> RunConfig:
    """configs/scratch.py with this argument."""
    argument = f"batch_size={batch},compute.dtype={dtype},optimizer.name=adamw"
    argument += ",evaluation.sub_networks=()" + (f",{way}" if way else "")
    return from_config(RunConfig, scratch.get_config(argument).to_dict())


def program_of(batch: int, dtype: str, way: str, depth: int) -> Program:
    """The step of one way, or of the default ('')."""

    def draw_widths(task: OnceForAll, key: jax.Array, count: int) -> jax.Array:
        return jnp.array(variants.balanced_widths(task.model.config.widths, count))

    masked = mock.patch.object(ffn, "on_one_cpu", return_value=False)
    with (
        mock.patch.object(OnceForAll, "draw_widths", draw_widths),
        masked if way == MASKED else contextlib.nullcontext(),
    ):
        return step_program(config_of(batch, dtype, argument_of(way, depth)))


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), help="(all)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7, help="turns (7)")
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")
    if MASKED in options.only and (jax.default_backend() != "cpu" or jax.device_count() > 1):
        note("masked is left out: but on one CPU the default masks, too")
        options.only = [way for way in options.only if way != MASKED]

    usual = config_of(options.batch, options.dtype)
    try:
        default = program_of(options.batch, options.dtype, "", usual.model.depth)
    except ValueError as error:
        parser.error(str(error))
    ceilings = Ceilings(options.dtype)
    print(
        f"train, {options.dtype}, batch {options.batch}, {described()}; {options.repeats} turns\n\n"
        f"{'':25s}{'compile s':>9s}{'MiB':>8s}{'s':>9s}{'floor s':>9s}   "
        f"{'over the loop':25s}quickest"
    )
    for way in options.only:
        name = WAYS[way]
        note(f"compiling {name}")
        other = program_of(options.batch, options.dtype, way, usual.model.depth)
        turns = take_turns({DEFAULT: default.call, name: other.call}, options.repeats, note)
        ceiling = ceilings.measure()
        for each, program in ((DEFAULT, default), (name, other)):
            floor = ceiling.floor(program.flops / program.devices, program.least_bytes)
            memory = "" if program.memory is None else f"{program.memory / 2**20:.0f}"
            line = f"{each:25s}{program.compile_seconds:9.1f}{memory:>8s}"
            line += f"{turns.seconds(each):9.3f}{floor:9.3f}"
            if each == name:
                quickest = min(turns.wall[name]) / min(turns.wall[DEFAULT])
                line += f"   {spread(turns.ratios(name, DEFAULT)):25s}{quickest:8.3f}"
            print(line, flush=True)
        del other  # its state takes gigabytes


if __name__ == "__main__":
    main()
