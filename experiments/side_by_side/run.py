"""Our forward and stage 3 training step beside plain PyTorch's: one process, same weights, in turn.

python -m experiments.side_by_side.run forward                     # some 4 minutes on 2 cores
python -m experiments.side_by_side.run train                       # some 5 minutes, 16 GB

Both run the paper's full-size model in float32 on as many threads as the machine has cores, each
with made-up weights that it shares with the other. Needs PyTorch (`pip install torch`).

- forward: `model.apply` under jit against the PyTorch twin of `adaperceiver_jax/convert`, eager,
  without the block mask, and with --masked or --compiled also with it, or through torch.compile.
- train: what main.py runs for configs/stage3_width.py, against the same step written in PyTorch as
  the reference writes it (torch_step.py). Both draw a width a sample and a granularity a block,
  learn 11,821 logits that are given (a teacher would cost both the same), and clip, update and
  average with AdamW in SOAP's place.

A ratio is ours over PyTorch's of the same turn: the median, and the least and most. Exits with 1
where the median is above --most (forward: 1.0, train: 0.9).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import adaperceiver_jax as ap
from adaperceiver_jax.convert.describe import config_to_dict
from adaperceiver_jax.convert.torch_twin import AdaPerceiver as Twin
from adaperceiver_jax.convert.torch_twin import twin
from adaperceiver_jax.evaluate.turns import note, spread, take_turns
from adaperceiver_jax.losses.distillation import distillation_kl
from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.tasks.make import RunConfig, make_model
from adaperceiver_jax.tasks.once_for_all import OnceForAll, Targets
from adaperceiver_jax.train.settings import from_config
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import make_programs
from configs import stage3_width
from experiments.side_by_side.torch_step import Stage3

MOST = {"forward": 1.0, "train": 0.9}
OURS, EAGER, MASKED, COMPILED = "ours", "PyTorch", "PyTorch, masked", "PyTorch, compiled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenLogits(OnceForAll):
    """Distillation from logits that are given, instead of a teacher."""

    def targets(self, constants: Any, samples: Any) -> Targets:
        return Targets(labels=constants["logits"])

    def logit_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return distillation_kl(logits, labels)


def torch_model(model: ap.AdaPerceiver, params: Any, mask: bool = True) -> Twin:
    """The same model in PyTorch, with these weights."""
    config = {**config_to_dict(model), **({} if mask else {"block_mask": "none"})}
    made = twin(config)
    state = {k: torch.from_numpy(np.array(v)) for k, v in ap.params_to_torch(model, params).items()}
    made.load_state_dict(state, strict=True)
    return made


def forward_programs(
    model: ap.AdaPerceiver, params: Any, batch: int, tokens: int, masked: bool, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """Calls of one sub-network, by name; each gives its logits (B, classes)."""
    c = model.config
    shape = (batch, c.image_size, c.image_size, c.in_channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = jax.jit(lambda params, x: model.apply({"params": params}, x, num_tokens=tokens).logits)
    on_device, nchw = jnp.asarray(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def theirs(network: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return network(nchw, num_tokens=tokens)["logits"]

        return call

    free = torch_model(model, params, mask=False)
    programs = {OURS: lambda: jax.block_until_ready(ours(params, on_device)), EAGER: theirs(free)}
    if masked:
        programs[MASKED] = theirs(torch_model(model, params))
    if compiled:
        programs[COMPILED] = theirs(torch.compile(free, dynamic=False))
    return programs


def train_programs(
    config: RunConfig, params: Any, batch_size: int
) -> tuple[dict[str, Callable[[], float]], float]:
    """Training steps by name, each of which gives its loss, and our count of a step's FLOPs."""
    model: Any = make_model(config)
    c = model.config
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    settings = dict(weight_decay=config.optimizer.weight_decay, mesh=mesh)
    chosen = make_optimizer("adamw", lambda count: config.optimizer.lr, **settings)
    task = GivenLogits(model=model, settings=config.loss, images=config.images)
    programs = make_programs(
        task, chosen, mesh, seed=config.seed, clip=config.optimizer.clip, ema=config.ema
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, c.image_size, c.image_size, 3), dtype=np.uint8)
    logits = rng.normal(size=(batch_size, c.num_classes)).astype(np.float32)
    batch = {"image": jnp.asarray(pixels), "label": jnp.zeros(batch_size, jnp.int32)}
    constants = {"logits": jnp.asarray(logits)}
    state = [programs.begin(jax.tree.map(jnp.copy, params))]  # what a step takes, it uses up
    number = [0]

    def ours() -> float:
        number[0] += 1
        state[0], metrics = programs.update(state[0], constants, batch, number[0])
        return float(jax.block_until_ready((state[0], metrics))[1]["loss"])

    step = Stage3(
        torch_model(model, params),
        config.images.mean,
        config.images.std,
        config.optimizer.lr,
        config.optimizer.weight_decay,
        config.optimizer.clip,
        config.ema,
    )
    given = torch.from_numpy(pixels), torch.from_numpy(logits)

    def theirs() -> float:
        widths = rng.choice(c.widths, batch_size).tolist()
        readout_tokens = rng.choice(c.token_granularities, c.depth).tolist()
        return step.update(*given, widths, readout_tokens)

    return {OURS: ours, EAGER: theirs}, task.train_flops(params) * batch_size


def stage3(arguments: dict[str, Any]) -> RunConfig:
    """configs/stage3_width.py, computed in float32."""
    changes = {"init_from": "''", "compute.dtype": "float32", **arguments}
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    return from_config(RunConfig, stage3_width.get_config(text).to_dict())


def row(
    label: str, programs: dict[str, Callable[[], Any]], repeats: int, gflops: float
) -> list[float]:
    """Times the programs and prints a line for each; gives the ratios of ours to eager PyTorch."""
    turns = take_turns(programs, repeats, lambda text: note(f"{label}: {text}"))
    for name in programs:
        seconds = turns.seconds(name)
        cells = f"{label if name == OURS else '':20s}{name:19s}{seconds:9.3f}"
        if name == OURS:
            print(f"{cells}{gflops / seconds:10.0f}", flush=True)
        else:
            print(f"{cells}{'':10s}   {spread(turns.ratios(OURS, name))}", flush=True)
    return turns.ratios(OURS, EAGER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(MOST))
    counts: Any = dict(type=int, nargs="+")
    parser.add_argument("--batch", **counts, default=[4, 8], help="images a call (4 8)")
    granularities = list(ap.AdaPerceiverConfig().token_granularities)
    parser.add_argument("--tokens", **counts, default=granularities, help="forward: (all trained)")
    parser.add_argument("--repeats", type=int, default=0, help="turns (forward 9, train 5)")
    parser.add_argument("--masked", action="store_true", help="forward: PyTorch with its mask too")
    parser.add_argument("--compiled", action="store_true", help="forward: torch.compile too")
    parser.add_argument("--most", type=float, help="the largest ratio that is no failure")
    options = parser.parse_args(arguments)
    if min(*options.batch, *options.tokens) < 1 or options.repeats < 0:
        parser.error("--batch and --tokens must be at least 1, --repeats not below 0")
    repeats = options.repeats or {"forward": 9, "train": 5}[options.what]
    most = MOST[options.what] if options.most is None else options.most

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(
        f"{options.what}, float32, {cores} cores of {jax.devices()[0].device_kind}; JAX "
        f"{jax.__version__}, PyTorch {torch.__version__}; {repeats} turns\n\n"
        f"{'':39s}{'median s':>9s}{'GFLOP/s':>10s}   ours / theirs"
    )
    medians = []
    if options.what == "forward":
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig())
        params = ap.init_params(model, jax.random.key(0))
        for batch in options.batch:
            for tokens in options.tokens:
                programs = forward_programs(
                    model, params, batch, tokens, options.masked, options.compiled
                )
                gflops = ap.flops(model.config, tokens, batch_size=batch).total * batch / 1e9
                ratios = row(f"batch {batch}, t = {tokens}", programs, repeats, gflops)
                medians.append(statistics.median(ratios))
    else:
        config = stage3({})
        params = ap.init_params(make_model(config), jax.random.key(0))
        for batch in options.batch:
            steps, flops = train_programs(config, params, batch)
            medians.append(statistics.median(row(f"batch {batch}", steps, repeats, flops / 1e9)))
    good = max(medians) <= most
    print(
        f"\n{'Held' if good else 'MISSED'}: at most {most} x PyTorch's eager time (medians "
        f"{min(medians):.3f} to {max(medians):.3f})."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
