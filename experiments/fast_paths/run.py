"""What each way to compute the forward takes, in turn with the way it is computed.

python -m experiments.fast_paths.run                       # some 7 minutes on 2 cores
python -m experiments.fast_paths.run --batch 256 --dtype bfloat16 --only attention

The paper's model with made-up weights:

  attention  cut by granularity, under one mask, and on a GPU in bfloat16 by cuDNN
  layout     blocks' weights stacked and looped over; written out; each block's an array of its own
  qkv        q, k and v by three products, or by one
  dtype      float32 or bfloat16, of products alone or of the weights as they are kept too
  gelu       of a block's hidden units: on CPUs by erf, elsewhere JAX's; JAX's everywhere
  gradient   of a kernel: on CPUs a product of rows; a product over images and tokens everywhere
  ffn        one FFN of a narrower width: cut in the call, a copy, a copy filled up to whole tiles
  buckets    fewer images than the batch size that a program was compiled for

A line a way: seconds to compile it, milliseconds a call, the floor (the FLOPs of the kind's first
way at the best rate that XLA reached in products of large matrices, or what is given and given back
at that of memory, whichever takes longer), and its time over that of the first of its kind, turn by
turn: the median, the least and the most.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.machine import Ceilings, described, enough_memory
from adaperceiver_jax.evaluate.speed import size_of
from adaperceiver_jax.evaluate.turns import note, spread, take_turns
from adaperceiver_jax.models import attention
from adaperceiver_jax.models.layers import activation
from experiments.fast_paths import variants

DTYPES = ("float32", "bfloat16")
KINDS = ("attention", "layout", "qkv", "dtype", "gelu", "gradient", "ffn", "buckets")


@dataclasses.dataclass(frozen=True)
class Way:
    """A program that is compiled; a call waits for its result."""

    call: Callable[[], Any]
    compile_seconds: float
    flops: float
    """Of the kind's first way: matrix products, a multiply-add as 2."""
    least_bytes: float
    """Of what is given and what comes of it."""


def ready(call: Callable[..., Any], flops: float, *arguments: Any) -> Way:
    """Compiles the call."""
    began = time.perf_counter()
    compiled = jax.jit(call).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    least_bytes = size_of(arguments) + size_of(jax.eval_shape(call, *arguments))
    return Way(lambda: jax.block_until_ready(compiled(*arguments)), seconds, flops, least_bytes)


def programs(
    kind: str, config: ap.AdaPerceiverConfig, dtype: Any, batch: int, tokens: int
) -> dict[str, Way]:
    """The ways of one kind, the first as the model computes."""
    model = ap.AdaPerceiver(config, dtype=dtype)
    params = ap.init_params(model, jax.random.key(0))
    side = config.image_size
    images = jax.random.normal(jax.random.key(1), (batch, side, side, config.in_channels))
    usual = variants.as_users_call_it
    an_image = ap.flops(config, tokens, batch_size=batch).total
    found: dict[str, Way] = {}

    def add(
        name: str, call: Callable[..., Any], *arguments: Any, flops: float = batch * an_image
    ) -> None:
        note(f"{kind}, {name}: compiling")
        found[name] = ready(call, flops, *(arguments or (params, images)))

    if kind == "attention":
        add("cut", usual(model, tokens))
        add("masked", usual(model.clone(attention="masked"), tokens))
        if jax.default_backend() == "gpu" and dtype == jnp.bfloat16:  # it takes no float32
            cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
            for name in ("cut", "masked"):
                with mock.patch.object(attention.jax.nn, "dot_product_attention", cudnn):
                    try:
                        add(f"{name}, cuDNN", usual(model.clone(attention=name), tokens))
                    except Exception as error:  # it takes some shapes on some cards only
                        note(f"cuDNN refuses {name}: {error}")
    elif kind == "layout":
        add("stacked, a loop", usual(model, tokens))
        add("stacked, written out", usual(model.clone(unroll=config.depth), tokens))
        each = variants.of_listed_blocks(model, tokens)
        add("an array a block", each, variants.listed(params), images)
    elif kind == "qkv":
        add("three products", usual(model, tokens))
        add("one product", variants.with_fused_qkv(model, tokens), variants.fused(params), images)
    elif kind == "dtype":
        for name in DTYPES:
            add(name, usual(model.clone(dtype=jnp.dtype(name)), tokens))
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        call = usual(model.clone(dtype=jnp.bfloat16), tokens)
        add("bfloat16, weights too", call, half, images)
    elif kind == "gelu":
        shape = (batch, tokens, config.hidden_units(config.full_width))
        hidden = jax.random.normal(jax.random.key(2), shape, dtype)
        add("as the model", functools.partial(activation, "gelu"), hidden, flops=0)
        add("JAX's", functools.partial(jax.nn.gelu, approximate=False), hidden, flops=0)
    elif kind == "gradient":
        sizes = config.hidden_units(config.full_width), config.embed_dim
        x, grad = (jax.random.normal(jax.random.key(n), (batch, tokens, n), dtype) for n in sizes)
        given, flops = (x, jnp.ones(sizes), grad), 2.0 * batch * tokens * sizes[0] * sizes[1]
        add("as the model", variants.kernel_gradient, *given, flops=flops)
        add("over two axes", variants.kernel_gradient_over_two_axes, *given, flops=flops)
    elif kind == "ffn":
        ffn = jax.tree.map(lambda p: p[0], params["blocks"]["ffn"])
        x = jax.random.normal(jax.random.key(2), (batch, tokens, config.embed_dim), dtype)
        for width in config.widths[:-1]:
            flops = 4.0 * x.size * config.hidden_units(width)
            for name, (call, own) in variants.ffns(config, width, dtype, ffn).items():
                add(f"width {width}, {name}", call, own, x, flops=flops)
    else:
        for count in sorted({batch, max(1, batch - 1), max(1, batch // 2), 1}, reverse=True):
            given = params, images[:count]
            name = f"{count} of {batch} images"
            add(name, usual(model, tokens), *given, flops=count * an_image)
    return found


@enough_memory()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds (all)")
    parser.add_argument("--batch", type=int, default=4, help="images a call (4)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 256], help="(32 256)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=7, help="turns (7)")
    options = parser.parse_args(arguments)
    if min(options.batch, options.repeats, *options.tokens) < 1:
        parser.error("--batch, --repeats and --tokens must be at least 1")

    config = ap.AdaPerceiverConfig()
    print(
        f"{options.dtype}, batch {options.batch}, {described()}; {options.repeats} turns\n\n"
        f"{'t':>4s}  {'':45s}{'compile s':>9s}{'ms':>9s}{'floor ms':>10s}"
    )
    ceilings = {name: Ceilings(name) for name in DTYPES}
    for kind in options.only:
        for tokens in options.tokens:
            ways = programs(kind, config, jnp.dtype(options.dtype), options.batch, tokens)
            turns = take_turns({name: way.call for name, way in ways.items()}, options.repeats)
            for dtype in DTYPES if kind == "dtype" else (options.dtype,):
                ceilings[dtype].measure()
            first = next(iter(ways))
            for name, way in ways.items():
                if kind == "ffn":  # each width has a first of its own
                    first = next(n for n in ways if n.split(",")[0] == name.split(",")[0])
                over = "" if name == first else f"   {spread(turns.ratios(name, first))}"
                best = ceilings[name.split(",")[0] if kind == "dtype" else options.dtype].best
                floor = best.floor(way.flops, way.least_bytes)
                times = f"{way.compile_seconds:9.1f}{1e3 * turns.seconds(name):9.2f}"
                times += f"{1e3 * floor:10.2f}"
                print(f"{tokens:4d}  {kind:11s}{name:34s}{times}{over}", flush=True)


if __name__ == "__main__":
    main()
