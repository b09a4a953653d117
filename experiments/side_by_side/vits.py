"""AdaPerceiver's token counts beside our own ViTs of the same accuracy, in turn.

python -m experiments.side_by_side.vits                        # some 6 minutes on 2 cores
python -m experiments.side_by_side.vits --train                # as long
python -m experiments.side_by_side.vits --batch 64 --dtype bfloat16

The DeiTs of the paper's Table 5, and its FlexiViTs with patches of 48 to 16 pixels, each take turns
with the fewest tokens at which AdaPerceiver is at least as right. Accuracies are the paper's; times
are of this machine, of models of these sizes with made-up weights. The floor is a model's FLOPs at
the rate that this device reached in products of large matrices, or its weights and images at the
rate of its memory.

--train instead times a step from labels with AdamW, on all devices: a ViT's, and ours of
configs/scratch.py, which trains all tokens, depths and widths at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.turns import note, spread, take_turns
from adaperceiver_jax.models.vit import ViTConfig
from adaperceiver_jax.tasks.command_line import enough_memory
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config
from configs import scratch
from experiments.paper.table_5 import read_table
from tools.speed import Ceilings, Program, described, forward_program, step_program

TINY, SMALL, BASE, LARGE = (
    dict(embed_dim=dim, depth=depth, num_heads=dim // 64)
    for dim, depth in ((192, 12), (384, 12), (768, 12), (1024, 24))
)
PATCHES = (48, 40, 30, 24, 20, 16)
VITS = {
    "DeiT-Ti/16": ViTConfig(**TINY),
    "DeiT-S/16": ViTConfig(**SMALL),
    "DeiT-B/16": ViTConfig(**BASE),
    "DeiT3-S/16": ViTConfig(**SMALL),
    "DeiT3-B/16": ViTConfig(**BASE),
    "DeiT3-L/16": ViTConfig(**LARGE),
    **{f"FlexViT-B (ps={p})": ViTConfig(**BASE, patch_size=p, image_size=240) for p in PATCHES},
    **{f"FlexiViT-L (ps={p})": ViTConfig(**LARGE, patch_size=p, image_size=240) for p in PATCHES},
}


def accuracies() -> dict[str, float]:
    """Accuracies in percent, by the paper's name of the model."""
    return {row.model: row.accuracy for row in read_table()}


def fewest_tokens(accuracy: float, found: Mapping[str, float], tokens: Sequence[int]) -> int | None:
    """The fewest tokens with which AdaPerceiver is as right; None if it never is."""
    enough = [t for t in tokens if found[f"AdaPerceiver (t={t})"] >= accuracy]
    return min(enough, default=None)


def forwards(batch: int, dtype: str, repeats: int) -> Iterator[str]:
    """The lines of the table: each ViT's call beside our own of as many tokens as it needs."""
    found = accuracies()
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(), dtype=jnp.dtype(dtype))
    params = ap.init_params(model, jax.random.key(0))
    ceilings = Ceilings(dtype)
    c = model.config

    @functools.cache
    def ours(tokens: int) -> Program:
        chosen = tokens, c.full_width, c.depth
        return forward_program(model, params, images_for(model, batch), chosen)

    yield from head("forward", batch, dtype, repeats)
    for name, config in VITS.items():
        tokens = fewest_tokens(found[name], found, c.token_granularities)
        assert tokens is not None
        note(f"{name} and t = {tokens}")
        vit = ap.ViT(config, dtype=model.dtype)
        its_params = ap.init_params(vit, jax.random.key(0))
        its = forward_program(vit, its_params, images_for(vit, batch), None)
        yield row(name, its, ours(tokens), repeats, ceilings)


def steps(batch: int, dtype: str, repeats: int) -> Iterator[str]:
    """The same of training steps from labels: ours trains all sub-networks in one."""
    ceilings = Ceilings(dtype)
    argument = f"batch_size={batch},evaluation.sub_networks=(),optimizer.name=adamw"
    chosen = scratch.get_config(f"{argument},compute.dtype={dtype}")
    config = from_config(RunConfig, chosen.to_dict())
    ours = step_program(config)
    yield from head("train", batch, dtype, repeats)
    for name in ("DeiT-S/16", "DeiT-B/16", "DeiT3-L/16"):
        note(f"{name} and our step")
        vit = dataclasses.replace(VITS[name], num_classes=config.model.num_classes)
        its = step_program(dataclasses.replace(config, task="teacher", vit=vit))
        yield row(name, its, ours, repeats, ceilings)


def images_for(model: Any, batch: int) -> jax.Array:
    """Made-up images (batch, H, W, C) of the model's size."""
    size = model.config.image_size
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def head(what: str, batch: int, dtype: str, repeats: int) -> Iterator[str]:
    """The lines above the rows."""
    yield f"{what}, {dtype}, batch {batch}, {described()}; {repeats} turns; an image:\n"
    columns = f"{'accuracy %':>10s}{'GFLOPs':>8s}{'ms':>8s}{'floor ms':>9s}"
    yield f"{'':20s}{columns}   {'ours':6s}{columns}   its time / ours"


def row(name: str, its: Program, ours: Program, repeats: int, ceilings: Ceilings) -> str:
    """Times the two in turn."""
    turns = take_turns({"its": its.call, "ours": ours.call}, repeats)
    ceiling, right = ceilings.measure(), accuracies()

    def cells(key: str, program: Program, model: str) -> str:
        accuracy = f"{right[model]:.2f}" if model in right else ""
        floor = ceiling.floor(program.flops / program.devices, program.least_bytes)
        ms, floor_ms = (1e3 * s / program.batch for s in (turns.seconds(key), floor))
        gflops = program.flops / program.batch / 1e9
        return f"{accuracy:>10s}{gflops:8.1f}{ms:8.1f}{floor_ms:9.1f}"

    tokens = f"t={ours.sub_network[0]}" if ours.sub_network else "all"
    pair = cells("its", its, name), cells("ours", ours, f"AdaPerceiver ({tokens})")
    return f"{name:20s}{pair[0]}   {tokens:6s}{pair[1]}   {spread(turns.ratios('its', 'ours'))}"


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="time training steps")
    parser.add_argument("--batch", type=int, default=4, help="images a call (4)")
    parser.add_argument("--repeats", type=int, default=7, help="turns (7)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")

    timed = steps if options.train else forwards
    try:
        for line in timed(options.batch, options.dtype, options.repeats):
            print(line, flush=True)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
