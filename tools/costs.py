"""What the sub-networks of one set of weights cost.

Builds the paper's AdaPerceiver with made-up weights and prints, for sub-networks over tokens,
width and depth, the parameters in use, the GFLOPs of one image and the measured latency.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import adaperceiver_jax as ap


def counts(text: str) -> list[int]:
    """'32,64' -> [32, 64]."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def count(text: str) -> int:
    """'4' -> 4."""
    (value,) = counts(text)
    return value


def make_parser() -> argparse.ArgumentParser:
    config = ap.AdaPerceiverConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, what in (
        ("--tokens", "32,64,128,256", "token counts, any"),
        ("--widths", "416,624,832", f"widths, 1 to {config.full_width}"),
        ("--depths", "7,14,21", f"depths, 1 to {config.depth}"),
    ):
        parser.add_argument(name, type=counts, default=default, help=f"{what} ({default})")
    parser.add_argument("--batch", type=count, default=1, help="images a call (1)")
    parser.add_argument("--repeats", type=count, default=5, help="timed calls each (5)")
    return parser


def measure(
    model: ap.AdaPerceiver, params, images: jax.Array, repeats: int, sub_network: dict[str, Any]
) -> float:
    """Median seconds of a call, compilation and one warm-up call apart."""
    call = jax.jit(lambda params, images: model.apply({"params": params}, images, **sub_network))
    jax.block_until_ready(call(params, images))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(params, images))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    config = ap.AdaPerceiverConfig()
    grid = list(itertools.product(options.tokens, options.widths, options.depths))
    try:
        costs = [
            ap.flops(config, t, w, d, batch_size=options.batch).total / 1e9 for t, w, d in grid
        ]
    except ValueError as error:
        parser.error(str(error))

    model = ap.AdaPerceiver(config)
    print("Making the paper's AdaPerceiver with made-up weights ...", flush=True)
    params = ap.init_params(model, jax.random.key(0))
    size = config.image_size
    images = jax.random.normal(jax.random.key(1), (options.batch, size, size, config.in_channels))
    device = jax.devices()[0]
    print(
        f"{ap.count_params(params) / 1e6:.1f} M parameters, images {size} x {size}, "
        f"batch {options.batch}, {device.device_kind} ({jax.device_count()} device), "
        f"{jnp.dtype(model.dtype).name}\n"
    )
    rows = []
    progress = tqdm(list(zip(grid, costs, strict=True)), unit="sub-network", ncols=80)
    for (t, w, d), gflops in progress:
        progress.set_postfix_str(f"t={t} w={w} l={d}")
        small = ap.AdaPerceiver(ap.extract_config(config, width=w, depth=d))
        used = ap.count_params(ap.param_shapes(small)) / 1e6
        sub_network: dict[str, Any] = {"num_tokens": t, "width": w, "depth": d}
        seconds = measure(model, params, images, options.repeats, sub_network)
        rows.append((t, w, d, used, gflops, 1e3 * seconds / options.batch))

    print("\ntokens  width  depth   params (M)   GFLOPs   ms an image")
    for t, w, d, used, gflops, milliseconds in rows:
        print(f"{t:6d} {w:6d} {d:6d} {used:12.1f} {gflops:8.1f} {milliseconds:13.1f}")
    cheapest, dearest = min(rows, key=lambda r: r[4]), max(rows, key=lambda r: r[4])
    print(
        f"\nOne set of weights: from {cheapest[4]:.1f} to {dearest[4]:.1f} GFLOPs "
        f"({dearest[4] / cheapest[4]:.1f} x) and from {cheapest[5]:.0f} to {dearest[5]:.0f} ms "
        f"({dearest[5] / cheapest[5]:.1f} x) an image, chosen at the call.\n"
        "The weights are made up, so the predictions mean nothing; the costs are real."
    )


if __name__ == "__main__":
    main()
