"""Once for all is cheap: what 6 token and 21 depth readouts add to a plain training step.

python -m experiments.readout_cost.run      # some 8 minutes on 2 cores, 4 GB

A step here is the loss and the gradients of all parameters of the paper's classifier in float32:

- plain: one forward at all tokens, full width and depth, one readout, cross-entropy;
- once for all: the loss that `main.py` trains with `--config.task=classify`, 27 readouts of one
  pass, without and with a width a sample;
- one pass a granularity (and a depth): the same readouts, each from a forward of its own.

FLOPs are XLA's own count, of models whose blocks are unrolled: it counts the body of a loop once.
"As written" is the program it is given, "as compiled" what it makes of that: there, fusion repeats
or saves elementwise work, which moves the count by more than the readouts do. Times are of the
blocks in a loop, as they are trained; plain and once for all run in turn, and a ratio is of
neighbours. Widths are masked, as on accelerators; on one CPU the trainer skips most of what is
masked. Exits with 1 if once for all costs more than 1.05 x the FLOPs, in either count, or 1.15 x
the time of plain.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.turns import Turns, note, take_turns
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.params import count_params, init_params, param_shapes
from adaperceiver_jax.tasks.classify import Classify
from adaperceiver_jax.tasks.once_for_all import LossSettings, Parts
from adaperceiver_jax.train.step import loss_and_gradients

MOST_FLOPS, MOST_TIME = 1.05, 1.15
NAMES = (
    "plain: one readout",
    "once for all: 27 readouts",
    "once for all, a width a sample",
    "one pass a granularity: 6 passes",
    "and one a depth: 26 passes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneReadout(Classify):
    """One forward of one token count, read out once, at its end."""

    tokens: int

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Parts]:
        out: Any = self.model.apply(
            {"params": params}, samples["images"], num_tokens=self.tokens, train=True
        )
        loss = self.logit_loss(out.logits, samples["labels"])
        return loss, {"label": loss}


def one_readout(model: AdaPerceiver, tokens: int | None = None) -> OneReadout:
    """The plain task, of all tokens if not told how many."""
    settings = LossSettings(depths=False, widths=False)
    return OneReadout(
        model=model, settings=settings, tokens=tokens or model.config.max_latent_tokens
    )


def make_step(task: Classify) -> Any:
    """(params, batch) -> gradients and metrics, compiled when it is first called."""

    def step(params: Any, batch: dict[str, jax.Array]) -> Any:
        draw_key, key = jax.random.split(jax.random.key(0))
        samples, shared = task.draw(batch, draw_key, 0)
        return loss_and_gradients(task, params, {}, {}, samples, shared, key)

    return jax.jit(step)


def make_batch(config: AdaPerceiverConfig, size: int) -> dict[str, jax.Array]:
    """Noise: what a step costs does not depend on its images."""
    shape = (size, config.image_size, config.image_size, config.in_channels)
    keys = jax.random.split(jax.random.key(1))
    return {
        "image": jax.random.randint(keys[0], shape, 0, 256).astype(jnp.uint8),
        "label": jax.random.randint(keys[1], (size,), 0, config.num_classes or 0),
    }


def count_flops(task: Classify, batch: dict[str, jax.Array], compiles: bool = False) -> list[float]:
    """XLA's counts for one step: as written, and as compiled if asked for."""
    lowered = make_step(task).lower(param_shapes(task.model), batch)
    programs: list[Any] = [lowered, lowered.compile()] if compiles else [lowered]
    return [float(program.cost_analysis()["flops"]) for program in programs]


def in_turn(
    groups: dict[str, Sequence[Callable[..., Any]]], params: Any, batch: Any, repeats: int
) -> Turns:
    """Times groups of programs, each group as if it were one."""

    def all_of(group: Sequence[Callable[..., Any]]) -> Callable[[], None]:
        return lambda: [jax.block_until_ready(program(params, batch)) for program in group]

    programs = {name: all_of(group) for name, group in groups.items()}
    return take_turns(programs, repeats, note)


def ratio(turns: Turns, name: str, kind: str = "wall") -> str:
    """Of a step's seconds over plain's."""
    values = turns.ratios(name, NAMES[0], kind)
    return f"{statistics.median(values):.3f} x ({min(values):.3f} to {max(values):.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures; 1 if the bars are missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2, help="images a step (2)")
    parser.add_argument("--repeats", type=int, default=8, help="timed steps of either kind (8)")
    parser.add_argument(
        "--naive-repeats", type=int, default=2, help="timed steps with a pass a granularity (2)"
    )
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats, options.naive_repeats) < 1:
        parser.error("--batch, --repeats and --naive-repeats must be at least 1")

    config = AdaPerceiverConfig()
    granularities = config.token_granularities
    batch = make_batch(config, options.batch)
    unrolled = AdaPerceiver(config, unroll=config.depth)
    readouts = LossSettings(widths=False)
    print(
        f"{count_params(param_shapes(unrolled)) / 1e6:.1f} M parameters, {config.num_classes} "
        f"classes, batch {options.batch}, float32, {jax.devices()[0].device_kind}; readouts at "
        f"{len(granularities)} token counts and {config.depth} depths\n"
    )

    counts = []
    for name, task in (
        (NAMES[0], one_readout(unrolled)),
        (NAMES[1], Classify(model=unrolled, settings=readouts)),
        (NAMES[2], Classify(model=unrolled)),
    ):
        note(f"counting FLOPs, {name}")
        counts.append(count_flops(task, batch, compiles=True))
    plain = counts[0]
    note(f"counting FLOPs, {NAMES[3]}")
    fewer = [count_flops(one_readout(unrolled, t), batch)[0] for t in granularities[:-1]]
    by_token = sum(fewer) + plain[0]
    note(f"counting FLOPs, {NAMES[4]}")
    shallow = [
        AdaPerceiver(dataclasses.replace(config, depth=depth), unroll=depth) for depth in (1, 2)
    ]
    one, two = (count_flops(one_readout(model), batch)[0] for model in shallow)
    by_depth = [one + (two - one) * l for l in range(config.depth)]  # blocks are alike
    counts += [[by_token], [by_token + sum(by_depth[:-1])]]
    print(f"{'GFLOPs of a step':33s}{'as written':>12s}{'x plain':>9s}", end="")
    print(f"{'as compiled':>13s}{'x plain':>9s}")
    for name, row in zip(NAMES, counts, strict=True):
        cells = [f"{n / 1e9:12.1f}{n / p:9.4f}" for n, p in zip(row, plain, strict=False)]
        print(f"{name:33s}{' '.join(cells)}")
    formula = 3 * options.batch * flops(config, batch_size=options.batch).total
    print(
        f"\nThree times the forward's matrix products are {formula / 1e9:.1f} GFLOPs. Passes of a "
        f"depth are reckoned from\nmodels of 1 and 2 blocks, by which all {config.depth} would "
        f"cost {by_depth[-1] / 1e9:.1f}.\n",
        flush=True,
    )

    looped = AdaPerceiver(config)
    params = init_params(looped, jax.random.key(0))
    steps = {
        NAMES[0]: [make_step(one_readout(looped))],
        NAMES[1]: [make_step(Classify(model=looped, settings=readouts))],
        NAMES[2]: [make_step(Classify(model=looped))],
    }
    times = in_turn(steps, params, batch, options.repeats)
    passes = {
        NAMES[0]: steps[NAMES[0]],
        NAMES[3]: [make_step(one_readout(looped, t)) for t in granularities],
    }
    naive = in_turn(passes, params, batch, options.naive_repeats)
    print(f"{'time of a step':33s}{'median s':>12s}   {'wall, x plain':27s}processor, x plain")
    print(f"{NAMES[0]:33s}{times.seconds(NAMES[0]):12.1f}   1")
    for name, run in ((NAMES[1], times), (NAMES[2], times), (NAMES[3], naive)):
        print(
            f"{name:33s}{run.seconds(name):12.1f}   {ratio(run, name):27s}"
            f"{ratio(run, name, 'processor')}"
        )
    print(
        f"\nMedians (and least to most) of {options.repeats} pairs, of {options.naive_repeats} for "
        "6 passes; processor: seconds of all cores."
    )
    ratios = [n / p for n, p in zip(counts[1], plain, strict=True)]
    time_ratio = statistics.median(times.ratios(NAMES[1], NAMES[0]))
    good = max(ratios) <= MOST_FLOPS and time_ratio <= MOST_TIME
    print(
        f"{'Held' if good else 'MISSED'}: once for all at most {MOST_FLOPS} x the FLOPs "
        f"({max(ratios):.4f}) and at most {MOST_TIME} x the time ({time_ratio:.3f})."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
