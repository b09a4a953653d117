"""AdaPerceiver's token counts beside our own ViTs of the same accuracy, in turn.

python -m experiments.side_by_side.vits                        # some 5 minutes on 2 cores
python -m experiments.side_by_side.vits --batch 64 --dtype bfloat16

The DeiTs of the paper's Table 5, and its FlexiViTs with patches of 48 to 16 pixels, stand each
against the fewest tokens at which AdaPerceiver is at least as right. Accuracies are the paper's;
times are of this machine, of models of these sizes with made-up weights. The floor is a model's
FLOPs at the rate that this device reached in products of large matrices, or its weights and images
at the rate of its memory.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.machine import Ceilings, described
from adaperceiver_jax.evaluate.speed import Program, forward_program
from adaperceiver_jax.evaluate.turns import note, spread, take_turns
from adaperceiver_jax.models.vit import ViTConfig

TABLE = Path(__file__).resolve().parents[1] / "paper" / "table_5.csv"
TINY, SMALL, BASE, LARGE = (
    dict(embed_dim=dim, depth=depth, num_heads=dim // 64)
    for dim, depth in ((192, 12), (384, 12), (768, 12), (1024, 24))
)
PATCHES = (48, 30, 24, 16)
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
    """In percent, by the paper's name of the model."""
    with TABLE.open(newline="") as file:
        return {row["model"]: float(row["accuracy"]) for row in csv.DictReader(file)}


def fewest_tokens(accuracy: float, found: Mapping[str, float], tokens: Sequence[int]) -> int | None:
    """With which AdaPerceiver is as right; None if it never is."""
    enough = [t for t in tokens if found[f"AdaPerceiver (t={t})"] >= accuracy]
    return min(enough, default=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4, help="images a call (4)")
    parser.add_argument("--repeats", type=int, default=7, help="turns (7)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")

    dtype, found = jnp.dtype(options.dtype), accuracies()
    ours = ap.AdaPerceiver(ap.AdaPerceiverConfig(), dtype=dtype)
    tokens = ours.config.token_granularities
    against = {name: fewest_tokens(found[name], found, tokens) for name in VITS}
    programs: dict[str, Program] = {}

    def add(name: str, model: ap.AdaPerceiver | ap.ViT, tokens: int | None = None) -> None:
        note(f"compiling {name}")
        size = model.config.image_size
        images = jax.random.normal(jax.random.key(1), (options.batch, size, size, 3))
        params = ap.init_params(model, jax.random.key(0))
        chosen = None
        if tokens is not None:
            chosen = (tokens, model.config.full_width, model.config.depth)
        programs[name] = forward_program(model, params, images, chosen)

    for name, config in VITS.items():
        add(name, ap.ViT(config, dtype=dtype))
    for t in sorted({t for t in against.values() if t is not None}):
        add(f"AdaPerceiver (t={t})", ours, t)
    ceilings = Ceilings(options.dtype)
    calls = {name: program.call for name, program in programs.items()}
    turns = take_turns(calls, options.repeats, note)
    ceiling = ceilings.measure()
    print(
        f"{options.dtype}, batch {options.batch}, {described()}; {options.repeats} turns; "
        "an image:\n\n"
        f"{'':20s}{'accuracy %':>10s}{'GFLOPs':>8s}{'ms':>8s}{'floor ms':>9s}   as right, "
        "its time / ours"
    )
    for name, program in programs.items():
        floor = ceiling.floor(program.flops, program.least_bytes)
        cells = f"{found[name]:10.2f}{program.flops / options.batch / 1e9:8.1f}"
        for seconds, length in ((turns.seconds(name), 8), (floor, 9)):
            cells += f"{1e3 * seconds / options.batch:{length}.1f}"
        t = against.get(name)
        if t is not None:
            twin = f"AdaPerceiver (t={t})"
            cells += f"   {f't={t}':7s}{spread(turns.ratios(name, twin))}"
        print(f"{name:20s}{cells}")


if __name__ == "__main__":
    main()
