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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

import adaperceiver_jax as ap
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.evaluate.machine import Ceiling, Ceilings, described, enough_memory
from adaperceiver_jax.evaluate.speed import (
    Program,
    SubNetwork,
    csv_text,
    forward_program,
    named,
    speeds_of,
    table,
    time_programs,
)
from adaperceiver_jax.evaluate.turns import Turns, note
from adaperceiver_jax.tasks.make import RunConfig, make_model, read_config
from adaperceiver_jax.tasks.shapes import step_program
from adaperceiver_jax.tasks.weights import find_weights

DTYPES = ("float32", "bfloat16")


def sub_network(text: str) -> SubNetwork:
    """'128,624,14' -> (128, 624, 14)."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must read like 128,624,14: tokens,width,depth")
    t, w, l = map(int, parts)
    return t, w, l


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", metavar="PATH", help="a run, folder, file or hub id's model"
    )
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
    return parser


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
    networks: list[SubNetwork | None] = list(chosen or [])
    if not networks:
        has_any = isinstance(config, ap.AdaPerceiverConfig)
        networks = list(default_sub_networks(config)) if has_any else [None]
    programs = []
    for each in networks:
        note(f"compiling {named(each, batch)}")
        programs.append(forward_program(model, params, images, each))
    return programs


def train_config(options: argparse.Namespace, batch: int) -> RunConfig:
    """--config's run with these options."""
    config = read_config(options.config)
    compute = config.compute
    if options.dtype is not None:
        compute = dataclasses.replace(compute, dtype=options.dtype)
    return dataclasses.replace(config, batch_size=batch, compute=compute)


def describe(ceiling: Ceiling, dtype: str) -> str:
    dtypes = " or ".join(dict.fromkeys((dtype, "float32")))
    return (
        f"{described()}\nOne of {jax.device_count()} x {jax.devices()[0].device_kind}, measured: "
        f"{ceiling.flops / 1e9:.0f} GFLOP/s in products of large {dtypes} matrices, "
        f"{ceiling.bandwidth / 1e9:.1f} GB/s of memory"
    )


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    logging.set_verbosity(logging.WARNING)
    parser = make_parser()
    options = parser.parse_args(arguments)
    batches = options.batch or [8 if options.train else 1]
    if min(*batches, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")
    if options.train and not options.config:
        parser.error("--train is of a config's step: add --config=configs/stage3_width.py, say")
    if options.train and options.sub_networks:
        parser.error("--train takes no --sub-networks: one step trains them all")
    if options.csv and not options.csv.parent.is_dir():
        parser.error(f"--csv {options.csv}: there is no folder {options.csv.parent}")
    try:
        if options.train:
            configs = [train_config(options, batch) for batch in batches]
            dtype = configs[0].compute.dtype
            groups = ([step_program(config)] for config in configs)
        else:
            model = find_model(options)
            dtype = jnp.dtype(model.dtype).name
            for chosen in options.sub_networks or []:
                ap.flops(model.config, *chosen)  # refuses what cannot be run
            groups = (forwards(model, options.sub_networks, batch) for batch in batches)
        note("measuring what the device does at most")
        ceilings = Ceilings(dtype)
    except ValueError as error:
        parser.error(str(error))
    timed: list[tuple[list[Program], Turns]] = []
    try:
        for programs in groups:
            timed.append((programs, time_programs(programs, options.repeats, note)))
            ceilings.measure()
    except ValueError as error:
        parser.error(str(error))
    finally:  # of several batch sizes a larger one may not fit
        speeds = [s for each in timed for s in speeds_of(*each, dtype, ceilings.best)]
        if speeds and options.csv:
            write_bytes(options.csv, csv_text(speeds).encode())
        if speeds:
            print(f"{describe(ceilings.best, dtype)}\n\n{table(speeds)}")


if __name__ == "__main__":
    main()
