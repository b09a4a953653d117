"""Our forward and stage 3 training step beside plain PyTorch's: one process, same weights, in turn.

python -m experiments.side_by_side.run forward       # some 8 minutes on 2 cores
python -m experiments.side_by_side.run train         # some 10 minutes, 16 GB

docs/performance.md says what to set before for memory on a CPU. Both run the paper's full-size
model on one device, a GPU or a CPU with as many threads as either library takes of itself, with the
same made-up weights; they need PyTorch (`pip install -e '.[torch]'`).

- forward: `model.apply` under jit against the PyTorch twin of `adaperceiver_jax/convert`, eager,
  without the block mask, and with --masked or --compiled also with it, or through torch.compile.
- train: the student's part of the step that main.py runs for configs/stage3_width.py, against the
  same step in PyTorch, written as the reference writes it (torch_step.py), and with --compiled also
  with its blocks and readouts compiled. Both give each sample a width, all equally often, and draw
  a granularity per block; they learn 11,821 given logits, without a teacher, of images without
  mixup, and clip, update and average with AdamW in SOAP's place, PyTorch's fused.

In bfloat16 PyTorch multiplies under autocast. The floor is our matrix products at the rate that
this device reached in products of large matrices, JAX's or PyTorch's, measured between the rows;
the share is the floor over our time. A ratio is ours over PyTorch's of the same turn: the median,
and the least and most; beside it that of the quickest calls, which a busy machine disturbs least.
Exits with 1 where the median against eager PyTorch is above --most (forward: 1.0, train: no bar).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.turns import Turns, note, spread, take_turns
from adaperceiver_jax.tasks.command_line import enough_memory
from adaperceiver_jax.tasks.make import make_model
from experiments.side_by_side.programs import (
    DTYPES,
    EAGER,
    OURS,
    PYTORCH,
    SideBySide,
    forwards,
    stage3,
    steps,
    torch_products,
    use_the_same_device,
)
from tools.speed import Ceilings, described

MOST = {"forward": 1.0, "train": None}


def head(what: str, dtype: str, repeats: int) -> str:
    """The lines above the rows."""
    return (
        f"{what}, {dtype}, {described()}, PyTorch {PYTORCH}; {repeats} turns\n\n"
        f"{'':39s}{'median s':>9s}{'floor s':>9s}{'share':>7s}   ours / theirs          quickest"
    )


def row(label: str, work: SideBySide, repeats: int, ceilings: Ceilings) -> Turns:
    """Times the programs and prints a line for each."""
    turns = take_turns(work.calls, repeats, lambda text: note(f"{label}: {text}"))
    ceiling = ceilings.measure()
    floor = ceiling.floor(work.flops, work.least_bytes)
    for name in work.calls:
        seconds = turns.seconds(name)
        cells = f"{label if name == OURS else '':20s}{name:19s}{seconds:9.3f}"
        if name == OURS:
            print(f"{cells}{floor:9.3f}{floor / seconds:7.0%}", flush=True)
        else:
            quickest = min(turns.wall[OURS]) / min(turns.wall[name])
            ratios = spread(turns.ratios(OURS, name))
            print(f"{cells}{'':16s}   {ratios}{quickest:9.3f}", flush=True)
    return turns


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(MOST))
    counts: Any = dict(type=int, nargs="+")
    parser.add_argument("--batch", **counts, default=[4, 8], help="images a call (4 8)")
    parser.add_argument("--tokens", **counts, help="forward: (all trained)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of matmuls (float32)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (9)")
    parser.add_argument("--masked", action="store_true", help="forward: PyTorch with its mask too")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too")
    keys = "of configs/stage3_width.py: compute.remat=False, model.depth=3, ... (as it is)"
    parser.add_argument("--config", default="", metavar="KEY=VALUE,...", help=keys)
    parser.add_argument("--most", type=float, help="the largest ratio that is no failure")
    options = parser.parse_args(arguments)
    if min(*options.batch, *(options.tokens or ()), options.repeats) < 1:
        parser.error("--batch, --tokens and --repeats must be at least 1")
    train = options.what == "train"
    if train and (options.tokens or options.masked):
        parser.error("train takes no --tokens and no --masked: a step is of all of them")
    most = MOST[options.what] if options.most is None else options.most
    classes = "" if train else "model.num_classes=1000"
    try:
        config = stage3(",".join(filter(None, (classes, options.config))), options.dtype)
        model: Any = make_model(config)
    except ValueError as error:
        parser.error(str(error))

    use_the_same_device()
    dtype = config.compute.dtype  # --config may say it too
    ceilings = Ceilings(dtype, also=lambda: torch_products(dtype))
    print(head(options.what, dtype, options.repeats))
    params = ap.init_params(model, jax.random.key(0))
    medians = []
    tokens = (None,) if train else options.tokens or model.config.token_granularities
    for batch, count in itertools.product(options.batch, tokens):
        if train:
            label, work = f"batch {batch}", steps(config, params, batch, options.compiled)
        else:
            label = f"batch {batch}, t = {count}"
            work = forwards(model, params, batch, count, options.masked, options.compiled)
        turns = row(label, work, options.repeats, ceilings)
        medians.append(statistics.median(turns.ratios(OURS, EAGER)))
    print(f"\nProducts of large matrices: {ceilings.best.flops / 1e9:,.0f} GFLOP/s.")
    spread_of_medians = f"(medians {min(medians):.3f} to {max(medians):.3f})."
    if most is None:
        print(f"Over PyTorch's eager time {spread_of_medians}")
        return 0
    held = max(medians) <= most
    verdict = "Held" if held else "MISSED"
    print(f"{verdict}: at most {most} x PyTorch's eager time {spread_of_medians}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
