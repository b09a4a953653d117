"""What we want of a GPU of the H200 class, measured beside PyTorch compiled.

python -m experiments.side_by_side.goals          # on an H200; less memory needs a smaller --batch
python -m experiments.side_by_side.goals --batch 2 --config model.depth=2 --repeats 2   # a trial

- A stage 3 step of 256 images does at least 45% of what the device does in products of large
  matrices (FLOPs as in run.py: those of our step, of all readouts, at the mean of the widths).
- 32 tokens give at least 5 times as many images a second as 256.
- Forward and step are at least 1.2 times as fast as PyTorch's, compiled.

All in bfloat16. Needs PyTorch (`pip install -e '.[torch]'`). Prints run.py's table, without eager
PyTorch, and the verdicts as they are known; exits with 1 where one is missed, on a GPU: what a CPU
does is no verdict.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.machine import Ceilings, enough_memory
from adaperceiver_jax.evaluate.turns import take_turns
from adaperceiver_jax.tasks.make import make_model
from experiments.side_by_side.programs import (
    COMPILED,
    OURS,
    SideBySide,
    forwards,
    stage3,
    steps,
    torch_products,
    use_the_same_device,
)
from experiments.side_by_side.run import head, row

MFU, FEW_TOKENS, OVER_PYTORCH = 0.45, 5.0, 1.2


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the verdicts; 1 if a goal is missed on a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="images a call (256)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (9)")
    parser.add_argument("--config", default="", metavar="KEY=VALUE,...", help="as of run.py")
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")

    try:
        config = stage3(options.config, "bfloat16")
        model: Any = make_model(config)
    except ValueError as error:
        parser.error(str(error))
    device = use_the_same_device()
    c = model.config
    params = ap.init_params(model, jax.random.key(0))
    dtype = config.compute.dtype
    ceilings = Ceilings(dtype, also=lambda: torch_products(dtype))
    print(head("goals", dtype, options.repeats))

    def timed(label: str, work: SideBySide) -> tuple[float, float]:
        """Our share of the ceiling, PyTorch's time over ours."""
        turns = row(label, work, options.repeats, ceilings)
        share = work.flops / turns.seconds(OURS) / ceilings.best.flops
        return share, statistics.median(turns.ratios(COMPILED, OURS))

    missed = []

    def judge(name: str, value: float, least: float) -> None:
        verdict = "held" if value >= least else "MISSED"
        missed.append(value < least)
        where = verdict if device == "cuda" else "no verdict"
        print(f"    {where}: {name}: {value:.3g} of {least}", flush=True)

    only = dict(compiled=True, eager=False)
    ours = {}
    fewest, most = min(c.token_granularities), c.max_latent_tokens
    for tokens in (fewest, most):
        work = forwards(model, params, options.batch, tokens, **only)
        ours[str(tokens)] = work.calls[OURS]
        _, over = timed(f"t = {tokens}", work)
        judge("PyTorch's time over ours", over, OVER_PYTORCH)
    turns = take_turns(ours, options.repeats)
    faster = statistics.median(turns.ratios(str(most), str(fewest)))
    judge(f"images a second, {fewest} tokens over {most}", faster, FEW_TOKENS)
    share, over = timed("step", steps(config, params, options.batch, **only))
    judge("MFU of a step", share, MFU)
    judge("PyTorch's time over ours", over, OVER_PYTORCH)
    return int(device == "cuda" and any(missed))


if __name__ == "__main__":
    sys.exit(main())
