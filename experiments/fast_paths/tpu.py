"""Attention and FFNs computed otherwise on a TPU, as its compiler sees them: FLOPs and traffic.

python -m experiments.fast_paths.tpu                          # of a v5e chip
python -m experiments.fast_paths.tpu --topology v5p:2x2x1     # of another

One chip, bfloat16, 16 images of 256 latents, the paper's sizes:

- a block's attention, its four projections included, forward and backward: cut by granularity,
  under one mask, by Splash (JAX's Pallas kernel, under the same mask), and with one product for
  q, k and v;
- an FFN of a narrower width, forward: its hidden units cut in the call, a copy, a copy filled up
  with zeros to whole tiles.

Nothing is run: FLOPs, those filled up to the matrix unit's tiles, and bytes of the large memory are
read from the compiled programs, and a time is reckoned from them as by tools/compile_for_tpu.py. A
Pallas kernel's products cannot be seen: Splash's are counted from its blocks, and its time is from
where they are free (all hidden behind traffic) to where nothing is.
Needs libtpu (pip install -e '.[tpu]'), no TPU; a minute on 2 cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adaperceiver_jax as ap
from adaperceiver_jax.models.attention import LatentAttention
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.masks import LatentMask, make_mask
from adaperceiver_jax.models.rope import Rope, apply_rope, make_rope
from experiments.fast_paths import variants
from tools.pod_report.program import Program, compile_program
from tools.pod_report.topology import Topology, find_topology, layout

BATCH, DTYPE = 16, jnp.bfloat16
TILE = 128
"""Side of Splash's blocks, and of a v5e's matrix unit."""


class SplashAttention(LatentAttention):
    """Under the same mask, by the kernel that comes with JAX."""

    def __call__(
        self, z: jax.Array, rope: Rope, mask: LatentMask, train: bool = False
    ) -> jax.Array:
        """z (B, N, D) -> (B, N, D)."""
        q = apply_rope(self.heads(self.q(z)), rope)
        k = apply_rope(self.heads(self.k(z)), rope)
        v = self.heads(self.v(z))
        each = splash_attention_mask.NumpyMask(mask.array())
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            mask=splash_attention_mask.MultiHeadMask([each] * self.num_heads)
        )
        q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # (B, H, N, d)
        return self.project(jax.vmap(kernel)(q, k, v).swapaxes(1, 2), train)


class OneProduct(LatentAttention):
    """q, k and v by one product of their kernels, side by side."""

    def __call__(
        self, z: jax.Array, rope: Rope, mask: LatentMask, train: bool = False
    ) -> jax.Array:
        """z (B, N, D) -> (B, N, D)."""
        with variants.one_product(side_by_side):
            return super().__call__(z, rope, mask, train)


def side_by_side(attention: LatentAttention) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of q, k and v, put together in the call."""
    layers = (attention.q, attention.k, attention.v)
    kernel = jnp.concatenate([layer.kernel for layer in layers], axis=1)
    return kernel, jnp.concatenate([layer.bias for layer in layers])


def attentions(
    config: ap.AdaPerceiverConfig, z: jax.ShapeDtypeStruct
) -> tuple[dict[str, Callable[..., Any]], Any]:
    """By name, (params, z, gradient of the result) -> gradients of params and z; params'
    shapes."""
    n = config.max_latent_tokens
    rope = make_rope(n, config.head_dim, config.rope_theta)
    mask = make_mask(config.mask, n, config.token_granularities)
    sizes = dict(features=config.embed_dim, num_heads=config.num_heads, dtype=DTYPE)
    ways: dict[str, Any] = {
        "cut by granularity": LatentAttention(**sizes),
        "under a mask": LatentAttention(**sizes, implementation="masked"),
        "Splash": SplashAttention(**sizes),
        "one product for q, k, v": OneProduct(**sizes),
    }

    def backward(attention: Any) -> Callable[..., Any]:
        def call(params: Any, z: jax.Array, gradient: jax.Array) -> Any:
            def forward(params: Any, z: jax.Array) -> Any:
                return attention.apply({"params": params}, z, rope, mask)

            return jax.vjp(forward, params, z)[1](gradient)

        return call

    first = next(iter(ways.values()))
    params = jax.eval_shape(lambda key, z: first.init(key, z, rope, mask), jax.random.key(0), z)
    return {name: backward(attention) for name, attention in ways.items()}, params["params"]


def splash_flops(config: ap.AdaPerceiverConfig) -> float:
    """Of the kernels' products for an image, forward and backward, as they fill the matrix unit: by
    their default blocks, those that are masked whole left out, heads filled up to its tiles."""
    n, side = config.max_latent_tokens, TILE
    visible = make_mask(config.mask, n, config.token_granularities).array()
    if visible is None:
        visible = np.ones((n, n), bool)
    blocks = visible.reshape(n // side, side, n // side, side).any((1, 3)).sum()
    products = 2 + 3 + 4  # of the forward, of dq, of dk and dv, which both make the scores again
    return float(products * 2 * blocks * side**3 * config.num_heads)


def compiled(name: str, call: Callable[..., Any], topology: Topology, *arguments: Any) -> Program:
    """A program for one chip, of arguments that are arrays or their shapes."""
    mesh = Mesh(np.array(topology.devices[:1]), ("data",))
    whole = NamedSharding(mesh, P())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments
    )
    return compile_program(name, jax.jit(call), shapes, "", layout(mesh), topology.chip)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2", help="whose chip (v5e:2x2)")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    logging.set_verbosity(logging.ERROR)
    try:
        topology = find_topology(options.topology)
    except ValueError as error:
        parser.error(str(error))

    config = ap.AdaPerceiverConfig()
    n, dim = config.max_latent_tokens, config.embed_dim
    z = jax.ShapeDtypeStruct((BATCH, n, dim), DTYPE)
    ffn = FFN(dim, config.hidden_units(config.full_width), dim, dtype=DTYPE)
    print(
        "| | GFLOPs | with tiles and passes | HBM traffic (MB) | reckoned (us) |\n"
        "|---|---|---|---|---|",
        flush=True,
    )

    def line(name: str, program: Program) -> None:
        work = program.work
        inside = BATCH * splash_flops(config) if program.opaque else 0.0
        real = inside * config.head_dim / TILE
        least, most = work.seconds, work.seconds + inside / topology.chip.flops
        print(
            f"| {name} | {(work.flops + real) / 1e9:.1f} | {(work.passes + inside) / 1e9:.1f} | "
            f"{work.hbm / 1e6:.1f} | {1e6 * least:.0f}{f' to {1e6 * most:.0f}' * (inside > 0)} |",
            flush=True,
        )

    ways, weights = attentions(config, z)
    for name, call in ways.items():
        line(f"attention, {name}", compiled(name, call, topology, weights, z, z))
    own = ffn.init(jax.random.key(0), jnp.zeros((1, dim), DTYPE))["params"]
    own = jax.tree.map(lambda x: x.astype(DTYPE), own)  # as they are served
    for width in config.widths[:-1]:
        for name, (call, params) in variants.ffns(config, width, DTYPE, own).items():
            line(f"FFN of width {width}, {name}", compiled(name, call, topology, params, z))


if __name__ == "__main__":
    main()
