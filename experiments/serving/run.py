"""Time falls with FLOPs: how much of the saving that a policy's FLOPs promise, time reaches.

python -m experiments.serving.run      # 12 to 25 minutes on 2 cores, 2 GB

A policy and the full sub-network answer the same images through the same server, batch 64, in
turn. With r = time / time of full, and f = GFLOPs / GFLOPs of full (of the images' own
sub-networks, exit tests included, padding not), the share reached is (1 - r) / (1 - f); r is the
median over neighbouring pairs, and pairs are timed until the share's standard error is small
enough: where little is saved, a noisy machine takes many. Policies:

- early exit at thresholds under which images run some 30%, 50% and 70% of the blocks on average,
  at two token counts, against no exits at the same count; and where nobody ever leaves (tau 1),
  which says what testing costs;
- token counts drawn at random, against all tokens.

Each is measured on calls of 64 images and on a stream. The weights are made up, so that confidences
differ between images and depths; --checkpoint takes a trained classifier instead, and its images
are still made up. Exits with 1 if a share is below 0.8.

Batches may have sixteenths of their size, rather than the server's eighths: on CPUs rows are not
free, and compilation is. Short segments feel it if the C library gives memory back after each
program: set what docs/performance.md says before.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.turns import note
from adaperceiver_jax.policies import Baseline, EarlyExit, Policy, Served, Server

LEAST_SHARE = 0.8
SIZES = 16
FEWEST_PAIRS = 10
DEPTH_SHARES = (0.3, 0.5, 0.7)
CONFIG = ap.AdaPerceiverConfig(  # of the paper's width, with fewer blocks and tokens
    embed_dim=832,
    num_heads=13,
    depth=8,
    max_latent_tokens=64,
    token_granularities=(16, 32, 64),
    widths=(416, 832),
    layer_scale=None,
    image_size=128,
    patch_size=16,
    num_classes=100,
)


class DrawnTokens(Baseline):
    """A token count for every image, drawn from the bits of its first pixel."""

    def __init__(self, config: ap.AdaPerceiverConfig) -> None:
        super().__init__(config)
        self.counts = config.token_granularities

    def choose(self, images: Any, embedded: Any = None) -> Any:
        seeds = np.asarray(images[:, 0, 0, 0], np.float32).view(np.uint32)
        draws = [np.random.default_rng(int(seed)).choice(self.counts) for seed in seeds]
        return dataclasses.replace(super().choose(images), num_tokens=np.array(draws))


def made_up() -> tuple[ap.AdaPerceiver, Any]:
    """A model whose every layer matters and whose confidences spread."""
    model = ap.AdaPerceiver(CONFIG)
    leaves, tree = jax.tree.flatten(ap.init_params(model, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))

    def noisy(leaf: jax.Array, key: jax.Array) -> jax.Array:
        scale = 1 / np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 0.1
        return leaf + scale * jax.random.normal(key, leaf.shape)

    return model, jax.tree.unflatten(tree, map(noisy, leaves, keys))


def make_images(config: ap.AdaPerceiverConfig, count: int) -> np.ndarray:
    """Coarse noise, of a strength and a colour of each image's own."""
    rng = np.random.default_rng(0)
    side, channels = config.image_size, config.in_channels
    coarse = rng.normal(size=(count, 4, 4, channels))
    coarse *= rng.uniform(0.2, 2, size=(count, 1, 1, 1))
    coarse += rng.normal(size=(count, 1, 1, channels))
    fine = np.kron(coarse, np.ones((1, side // 4, side // 4, 1)))
    return (fine + 0.3 * rng.normal(size=fine.shape)).astype(np.float32)


def confidences(model: Any, params: Any, images: np.ndarray, num_tokens: int) -> np.ndarray:
    """Confidences (L, B) of this token count at every depth."""
    tokens = np.full(model.config.depth, num_tokens)

    @jax.jit
    def batch(params: Any, images: jax.Array) -> jax.Array:
        out: Any = model.apply({"params": params}, images, None, tokens, method="readouts")
        return jax.nn.softmax(out.depth_logits).max(axis=-1)

    parts = [batch(params, images[i : i + 64]) for i in range(0, len(images), 64)]
    return np.concatenate(parts, axis=-1)


def threshold(confidence: np.ndarray, share: float) -> float:
    """The tau under which images of confidence (L, B) run this share of the blocks on average."""
    candidates = np.quantile(confidence, np.linspace(0, 1, 200))
    confident = confidence[None] >= candidates[:, None, None]  # (taus, L, B)
    depth = np.where(confident.any(1), confident.argmax(1) + 1, len(confidence)).mean(-1)
    return float(candidates[np.abs(depth - share * len(confidence)).argmin()])


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy on one kind of call, against the full sub-network."""

    name: str
    images: int
    served: Served
    gflops: float
    """x full"""
    wall: list[float] = dataclasses.field(default_factory=list)
    """x full, pair by pair"""
    processor: list[float] = dataclasses.field(default_factory=list)

    @property
    def saves(self) -> bool:
        """Enough that a share of it can be measured."""
        return self.gflops < 0.95

    def share(self, ratios: list[float]) -> float:
        """The part of the FLOPs saved that time saves."""
        return (1 - statistics.median(ratios)) / (1 - self.gflops)

    @property
    def error(self) -> float:
        """Standard error of the share, or of the ratio of times where no FLOPs are saved: that of a
        median of as many normal values."""
        error = math.sqrt(math.pi / 2 / len(self.wall)) * statistics.stdev(self.wall)
        return error / (1 - self.gflops) if self.saves else error

    @property
    def useful(self) -> float:
        """The part of all that was computed that the images' own sub-networks take."""
        return float(self.served.gflops.sum() / self.served.computed_gflops)

    def line(self) -> str:
        wall, share, processor = f"{statistics.median(self.wall):.3f}", "-", "-"
        if self.saves:
            share = f"{self.share(self.wall):.2f} \u00b1 {self.error:.2f}"
            processor = f"{self.share(self.processor):.2f}"
        else:
            wall += f" \u00b1 {self.error:.3f}"
        return (
            f"| {self.name} | {self.images} | {self.served.depth.mean():.1f} | {self.gflops:.3f} | "
            f"{wall} | {share} | {processor} | {self.useful:.2f} | {len(self.wall)} |"
        )


def measure(
    name: str, full: Server, policy: Server, images: np.ndarray, error: float, most: int
) -> Row:
    """Both in turn, the first of a pair alternating, until the error is small or `most` pairs.

    The error is looked at after each two pairs, so that both orders weigh the same.
    """
    servers = (full, policy)
    served = [server(images) for server in servers]  # compiles
    gflops = float(served[1].gflops.mean() / served[0].gflops.mean())
    row = Row(name, len(images), served[1], gflops)
    while len(row.wall) < most:
        if len(row.wall) >= FEWEST_PAIRS and len(row.wall) % 2 == 0 and row.error <= error:
            break
        seconds = np.empty((2, 2))
        for i in (0, 1) if len(row.wall) % 2 == 0 else (1, 0):
            start = time.perf_counter(), time.process_time()
            servers[i](images)
            seconds[i] = time.perf_counter() - start[0], time.process_time() - start[1]
        wall, processor = (seconds[1] / seconds[0]).tolist()
        row.wall.append(wall)
        row.processor.append(processor)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if time reaches less of a saving than it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained classifier's folder")
    parser.add_argument("--batch", type=int, default=64, help="images a full batch (64)")
    parser.add_argument("--stream", type=int, default=192, help="images of the stream (192)")
    parser.add_argument("--sizes", type=int, default=SIZES, help="sizes a batch may have (16)")
    error = "standard error of a share to reach (0.015)"
    parser.add_argument("--error", type=float, default=0.015, help=error)
    parser.add_argument("--pairs", type=int, default=40, help="pairs timed at most (40)")
    options = parser.parse_args(arguments)
    if options.sizes < 1 or options.pairs < FEWEST_PAIRS:
        parser.error(f"--sizes must be at least 1, --pairs at least {FEWEST_PAIRS}")
    chosen: Any = ap.from_pretrained(options.checkpoint) if options.checkpoint else made_up()
    model, params = chosen
    c = model.config
    images = make_images(c, options.stream)

    def server(policy: Policy) -> Server:
        sizes = sorted({-(-options.batch * k // options.sizes) for k in range(1, options.sizes)})
        return Server(model, params, policy, batch_size=options.batch, batch_sizes=sizes)

    most = c.token_granularities[-1]
    cases: list[tuple[str, Policy, Baseline]] = []
    for t in (c.token_granularities[-2], most):
        note(f"confidences at {t} tokens")
        confidence, full = confidences(model, params, images, t), Baseline(c, t)
        for share in DEPTH_SHARES:
            tau = threshold(confidence, share)
            cases.append((f"exit, {t} tokens, tau {tau:.3f}", EarlyExit(tau, full), full))
        cases.append((f"exit, {t} tokens, tau 1", EarlyExit(1.0, full), full))
    cases.append(("drawn tokens", DrawnTokens(c), Baseline(c, most)))

    print(
        f"{c.embed_dim} channels, {c.depth} blocks, {most} tokens, batch {options.batch}, "
        f"{jax.devices()[0].device_kind}\n\n"
        "| policy | images a call | mean depth | GFLOPs, x full | time, x full | share reached | "
        "by processor time | useful GFLOPs | pairs |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    rows = []
    for count in (options.batch, options.stream):
        for name, policy, full in cases:
            if count == options.stream and name.startswith(f"exit, {most} "):
                continue  # a stream of these takes long and says nothing new
            note(f"{name}, {count} images")
            both = server(full), server(policy)
            row = measure(name, *both, images[:count], options.error, options.pairs)
            print(row.line(), flush=True)
            rows.append(row)
    worst = min((row for row in rows if row.saves), key=lambda row: row.share(row.wall))
    share = worst.share(worst.wall)
    good = share >= LEAST_SHARE
    print(
        f"\n{'Held' if good else 'MISSED'}: every share at least {LEAST_SHARE}; the least is "
        f"{share:.2f} \u00b1 {worst.error:.2f}."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
