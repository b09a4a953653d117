"""How long SOAP's eigenvectors take the hosts of a pod, against the time between two refreshes.

python -m experiments.refresh.run --config=configs/stage3_width.py --step 0.07

Decomposes a matrix of every size that the config's model has on one core of this machine, each
`--repeats` times, and reckons from the medians when the last of the pod's hosts would be done: each
does the matrices that its own chips hold, those of 3072 and more one after another on all its cores
(`--speed-up` times as fast as on one: not measured, say what yours do), the others a core each. The
cores are taken to be idle, though images are decoded on them, and what a refresh takes besides (one
step that nothing runs ahead of, the programs that deal matrices out) is not counted.
Prints the matrices, the hosts with the most to do, and what a step waits for, exactly and
overlapped, and how many steps between two refreshes leave less than 2% of waiting. Takes as long as
the eigenvectors of one matrix of 8192, some minutes.
"""

from __future__ import annotations

import argparse
import collections
import heapq
import math
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh
from threadpoolctl import threadpool_limits

from adaperceiver_jax.models.params import param_shapes
from adaperceiver_jax.optim.eigenvectors import LARGE, dealt_to
from adaperceiver_jax.optim.stacks import Stacks
from adaperceiver_jax.optim.trainable import split
from adaperceiver_jax.tasks.config_file import read_config
from adaperceiver_jax.tasks.make import make_model

WAIT = 0.02
"""Of the time between two refreshes: what steps may wait, at most."""
LINK = 16e9
"""Bytes a second between a chip and its host, each way: PCIe of the third generation, 16 lanes."""


def seconds_of(size: int, repeats: int) -> float:
    """The eigenvectors of one float32 matrix, on one core."""
    rng = np.random.default_rng(size)
    root = rng.standard_normal((size, size)).astype(np.float32)
    matrix = root @ root.T / size
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        with threadpool_limits(1, "blas"):
            np.linalg.eigh(matrix)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def seconds_a_byte() -> float:
    """Dividing a matrix, as is done with each before steps go on."""
    matrix = np.ones((4096, 4096), np.float32)
    began = time.perf_counter()
    np.divide(matrix, np.float32(3))
    return (time.perf_counter() - began) / matrix.nbytes


def host_seconds(sizes: Sequence[int], one: dict[int, float], cores: int, speed_up: float) -> float:
    """When a host is done: the large matrices on all cores, then the others, the largest first,
    each on the core that is free first."""
    large = sum(one[m] / speed_up for m in sizes if m >= LARGE)
    free = [0.0] * cores
    for m in sorted((m for m in sizes if m < LARGE), reverse=True):
        heapq.heappush(free, heapq.heappop(free) + one[m])
    return large + max(free)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="as tools/compile_for_tpu.py takes it")
    parser.add_argument("--devices", type=int, default=256, help="chips (256)")
    parser.add_argument("--chips-per-host", type=int, default=4, help="(4)")
    parser.add_argument(
        "--cores", type=int, default=56, help="of a host (56: 112 threads of a v5e host)"
    )
    parser.add_argument(
        "--speed-up", type=float, default=8.0, help="of a large matrix on all cores (8, assumed)"
    )
    parser.add_argument("--step", type=float, required=True, help="seconds of a step")
    parser.add_argument("--repeats", type=int, default=1, help="(1)")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    params, _ = split(param_shapes(make_model(config)), config.train_only)
    mesh = AbstractMesh((options.devices, 1), ("data", "fsdp"))
    stacks = Stacks(params, config.optimizer.max_preconditioner_dim, mesh)
    jobs = list(dealt_to(stacks.all, options.devices))
    counts = collections.Counter(size for size, _ in jobs)
    one = {}
    print(f"{options.config}: {len(jobs)} matrices, {jax.devices()[0].device_kind}, one core\n")
    print("| size | matrices | seconds each |\n|---|---|---|")
    for size in sorted(counts):
        one[size] = seconds_of(size, options.repeats)
        print(f"| {size} | {counts[size]} | {one[size]:.3g} |", flush=True)
    hosts: dict[int, list[int]] = collections.defaultdict(list)
    for size, device in jobs:
        hosts[device // options.chips_per_host].append(size)
    count = -(-options.devices // options.chips_per_host)
    times = {
        host: host_seconds(sizes, one, options.cores, options.speed_up)
        for host, sizes in hosts.items()
    }
    chips: dict[int, int] = collections.Counter()
    for size, device in jobs:
        chips[device] += 4 * size * size
    period = options.step * config.optimizer.precondition_frequency
    alone = sum(one[size] for size, _ in jobs)
    longest = max(times.values())
    held = max(sum(4 * m * m for m in sizes) for sizes in hosts.values())
    copied = max(chips.values()) * 2 / LINK + held * seconds_a_byte()
    beyond = max(0.0, longest - period)
    enough = max(longest, copied / WAIT)
    print(
        f"\nOn one core of one host: {alone:,.0f} s. On {count} hosts of {options.cores} cores: "
        f"{longest:.1f} s, the slowest host; half of them are done in "
        f"{statistics.median(times.get(host, 0.0) for host in range(count)):.2f} s.\n"
        f"Between two refreshes: {config.optimizer.precondition_frequency} steps of "
        f"{options.step:g} s, {period:.1f} s.\n"
        f"Exactly, steps wait {longest + copied:.1f} s, {(longest + copied) / period:.0%} of that; "
        f"overlapped {copied + beyond:.2f} s, {(copied + beyond) / period:.1%}: to copy at most "
        f"{max(chips.values()) / 2**20:,.0f} MiB from a chip to its host and back, at "
        f"{LINK / 1e9:g} GB/s, to divide {held / 2**20:,.0f} MiB"
        + (", and for what the hosts are not done with." if beyond else ".")
        + f"\nOverlapped, with a refresh every {math.ceil(enough / options.step)} steps or more, "
        f"steps wait at most {WAIT:.0%}."
    )


if __name__ == "__main__":
    main()
