"""How fast a model's sub-networks, or its training step, are on this machine.

python tools/benchmark.py                                  # the paper's model, some minutes
python tools/benchmark.py --sub-networks 256,832,21 32,832,21 --batch 1 8 --csv speed.csv
python tools/benchmark.py --checkpoint runs/stage3 --dtype bfloat16
python tools/benchmark.py --train --config configs/stage3_width.py --batch 4 --dtype float32

Every program is compiled and called twice before it is timed, and programs of one batch size take
turns. Weights and images are made up: times do not depend on them. GFLOPs are those of the matrix
products. Above them stands what this device does at most, measured before and after: products of
large matrices in the same dtype, or in float32 where that is quicker, and bytes a second; the floor
is what a call's GFLOPs, or the weights, images and outputs that it cannot do without, take at that
rate. MiB are what the compiler plans for, all weights that are given and all temporaries; nothing
is measured while it runs.

--train times the two programs of main.py's step for a config, on all devices, its teacher
included; a SOAP refresh is not among them. GFLOPs are the models' then too: SOAP's own products,
most of a step of few images, are not counted, so the share of the ceiling is without them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.evaluate.points import csv_text
from adaperceiver_jax.evaluate.turns import note, take_turns
from adaperceiver_jax.tasks.command_line import make_parser, refusals
from adaperceiver_jax.tasks.make import RunConfig, make_model, read_config
from adaperceiver_jax.tasks.weights import find_weights
from tools.speed import (
    Ceiling,
    Ceilings,
    Program,
    SubNetwork,
    described,
    forward_program,
    named,
    speed_of,
    step_program,
    table,
)

DTYPES = ("float32", "bfloat16")


def sub_network(text: str) -> SubNetwork:
    """'128,624,14' -> (128, 624, 14)."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must read like 128,624,14: tokens,width,depth")
    t, w, l = map(int, parts)
    return t, w, l


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ValueError for those that do not fit each other."""
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    checkpoint = "a run, folder, file or hub id's model"
    source.add_argument("--checkpoint", metavar="PATH", help=checkpoint)
    source.add_argument("--config", metavar="FILE[:ARGUMENT]", help="the model of a run's config")
    parser.add_argument(
        "--sub-networks",
        type=sub_network,
        nargs="+",
        metavar="T,W,L",
        help="tokens, width, depth (every trained token count; the other widths, and a third and "
        "two thirds of the depth, at all tokens; the smallest of all)",
    )
    parser.add_argument("--train", action="store_true", help="time the training step of --config")
    parser.add_argument("--batch", type=int, nargs="+", help="images a call (1; --train: 8)")
    parser.add_argument("--dtype", choices=DTYPES, help="of matmuls (the config's, else float32)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each (10)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the numbers (only printed)")
    options = parser.parse_args(arguments)
    options.batch = options.batch or [8 if options.train else 1]
    if min(*options.batch, options.repeats) < 1:
        raise ValueError("--batch and --repeats must be at least 1")
    if options.train and not options.config:
        raise ValueError("--train is of a config's step: add --config=configs/stage3_width.py, say")
    if options.train and options.sub_networks:
        raise ValueError("--train takes no --sub-networks: one step trains them all")
    if options.csv and not options.csv.parent.is_dir():
        raise ValueError(f"--csv {options.csv}: there is no folder {options.csv.parent}")
    return options


def default_sub_networks(config: ap.AdaPerceiverConfig) -> list[SubNetwork]:
    """Along each axis from the whole model, and the smallest of all."""
    tokens, widths = config.token_granularities, config.widths or (config.full_width,)
    t, w, l = config.max_latent_tokens, config.full_width, config.depth
    depths = sorted({max(1, l // 3), max(1, 2 * l // 3)})
    found = [(t, w, l), *((n, w, l) for n in sorted(tokens, reverse=True))]
    found += [(t, n, l) for n in sorted(widths, reverse=True)]
    found += [(t, w, n) for n in reversed(depths)]
    found.append((min(tokens, default=t), min(widths), depths[0]))
    return list(dict.fromkeys(found))


def find_model(options: argparse.Namespace) -> Any:
    """The model that was asked for, without weights."""
    if options.checkpoint:
        model: Any = find_weights(options.checkpoint).model
    elif options.config:
        model = make_model(read_config(options.config))
    else:
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig())
    return model if options.dtype is None else model.clone(dtype=jnp.dtype(options.dtype))


def forwards(model: Any, chosen: Sequence[SubNetwork] | None, batch: int) -> list[Program]:
    """The calls to be timed at one batch size."""
    config = model.config
    params = ap.init_params(model, jax.random.key(0))
    example = model.example_inputs()
    images = jax.random.normal(jax.random.key(1), (batch, *example.shape[1:]), example.dtype)
    networks: Sequence[SubNetwork | None] = chosen or [None]
    if not chosen and isinstance(config, ap.AdaPerceiverConfig):
        networks = default_sub_networks(config)
    programs = []
    for each in networks:
        note(f"compiling {named(each, batch)}")
        programs.append(forward_program(model, params, images, each))
    return programs


def train_config(options: argparse.Namespace, batch: int) -> RunConfig:
    """--config's run with these options."""
    config = read_config(options.config)
    compute = dataclasses.replace(config.compute, dtype=options.dtype or config.compute.dtype)
    return dataclasses.replace(config, batch_size=batch, compute=compute)


def find_programs(options: argparse.Namespace) -> tuple[str, Iterator[list[Program]]]:
    """The dtype, and the programs of each batch size, compiled as they are asked for."""
    if options.train:
        configs = [train_config(options, batch) for batch in options.batch]
        return configs[0].compute.dtype, ([step_program(config)] for config in configs)
    model = find_model(options)
    for chosen in options.sub_networks or []:
        ap.flops(model.config, *chosen)  # refuses what cannot be run
    groups = (forwards(model, options.sub_networks, batch) for batch in options.batch)
    return jnp.dtype(model.dtype).name, groups


def describe(ceiling: Ceiling, dtype: str) -> str:
    dtypes = " or ".join(dict.fromkeys((dtype, "float32")))
    return (
        f"{described()}\nOne of {jax.device_count()} x {jax.devices()[0].device_kind}, measured: "
        f"{ceiling.flops / 1e9:.0f} GFLOP/s in products of large {dtypes} matrices, "
        f"{ceiling.bandwidth / 1e9:.1f} GB/s of memory"
    )


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Times the programs, prints the table, writes the CSV."""
    options = read_options(arguments)
    dtype, groups = find_programs(options)
    note("measuring what the device does at most")
    ceilings = Ceilings(dtype)
    timed: list[tuple[Program, list[float]]] = []
    try:
        for programs in groups:
            turns = take_turns({p.name: p.call for p in programs}, options.repeats, note)
            timed += [(program, turns.wall[program.name]) for program in programs]
            ceilings.measure()
    finally:  # of several batch sizes a larger one may not fit
        speeds = [speed_of(*each, dtype, ceilings.best) for each in timed]
        if speeds and options.csv:
            write_bytes(options.csv, csv_text(speeds).encode())
        if speeds:
            print(f"{describe(ceilings.best, dtype)}\n\n{table(speeds)}")


if __name__ == "__main__":
    main()
