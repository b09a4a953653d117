"""Does time fall as FLOPs do, along tokens, width and depth?

python -m experiments.axes.run                                      # some 2 minutes on 2 cores
python -m experiments.axes.run --batch 256 --dtype bfloat16         # on an accelerator

Calls of the paper's model take turns: the whole of it, and a quarter of its tokens, half of its
width, a third of its depth. Of each stands what the whole and the part take, beside the floor that
their FLOPs or weights set on this machine, how much quicker the part is (the median over the turns,
the least and the most), how much fewer its FLOPs are, and the share of this that it is quicker by.
Exits with 1 where a share's median is below --least (0.9).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.machine import Ceilings, described, enough_memory
from adaperceiver_jax.evaluate.speed import SubNetwork, forward_program
from adaperceiver_jax.evaluate.turns import note, spread, take_turns


def smaller(config: ap.AdaPerceiverConfig) -> dict[str, SubNetwork]:
    """The whole model, and one sub-network along each axis."""
    t, w, l = config.max_latent_tokens, config.full_width, config.depth
    least = min(config.widths)
    return {
        "whole": (t, w, l),
        f"tokens {t} to {t // 4}": (t // 4, w, l),
        f"width {w} to {least}": (t, least, l),
        f"depth {l} to {l // 3}": (t, w, l // 3),
    }


def measure(
    model: ap.AdaPerceiver, params: Any, batch: int, repeats: int, ceilings: Ceilings
) -> list[float]:
    """Prints a line an axis; gives the shares."""
    example = model.example_inputs()
    images = jax.random.normal(jax.random.key(1), (batch, *example.shape[1:]), example.dtype)
    programs = {}
    for name, sub_network in smaller(model.config).items():
        note(f"batch {batch}: compiling {name}")
        programs[name] = forward_program(model, params, images, sub_network)
    whole, *axes = programs
    turns = take_turns({name: p.call for name, p in programs.items()}, repeats)
    ceiling = ceilings.measure()
    shares = []
    for name in axes:
        promised = programs[whole].flops / programs[name].flops
        ratios = turns.ratios(whole, name)
        shares.append(statistics.median(ratios) / promised)
        times = ""
        for each in (whole, name):
            floor = ceiling.floor(programs[each].flops, programs[each].least_bytes)
            times += f"{1e3 * turns.seconds(each):9.1f}{1e3 * floor:9.1f}"
        print(
            f"{batch:5d}  {name:20s}{times}   {spread(ratios):24s}{promised:7.3f}{shares[-1]:7.0%}",
            flush=True,
        )
    return shares


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8], help="images (4 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=9, help="turns (9)")
    parser.add_argument("--least", type=float, default=0.9, help="share that is no failure (0.9)")
    options = parser.parse_args(arguments)
    if min(*options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")

    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(), dtype=jnp.dtype(options.dtype))
    params = ap.init_params(model, jax.random.key(0))
    print(
        f"{options.dtype}, {described()}; {options.repeats} turns\n\n"
        f"batch  {'':20s}{'whole ms':>9s}{'floor':>9s}{'part ms':>9s}{'floor':>9s}   "
        f"{'times as quick':24s}{'FLOPs':>7s}{'share':>7s}"
    )
    ceilings = Ceilings(options.dtype)
    shares = []
    for batch in options.batch:
        shares += measure(model, params, batch, options.repeats, ceilings)
    good = min(shares) >= options.least
    print(
        f"\n{'Held' if good else 'MISSED'}: at least {options.least:.0%} of what FLOPs promise "
        f"({min(shares):.0%} to {max(shares):.0%})."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
