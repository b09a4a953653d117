"""The latent stream: L identical blocks over the latents, their parameters stacked."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from adaperceiver_jax.models.attention import LatentAttention
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import KEEP_PRODUCTS, LayerNorm, LayerScale, stochastic_depth
from adaperceiver_jax.models.masks import LatentMask
from adaperceiver_jax.models.rope import Rope


@struct.dataclass
class Run:
    """Inputs of every block of one run besides the latents; the static part fixes the program."""

    rope: Rope
    mask: LatentMask = struct.field(pytree_node=False)
    hidden_per_sample: jax.Array | None = None
    """(B,) hidden units of each sample, where samples differ in width."""
    hidden: int | None = struct.field(pytree_node=False, default=None)
    """Hidden units of the whole batch; None is all."""
    train: bool = struct.field(pytree_node=False, default=False)
    keep_latents: bool = struct.field(pytree_node=False, default=False)
    """True if the latents after every block are wanted."""


class Block(nn.Module):
    """z + ls1 * attention(norm1(z)), then z + ls2 * FFN(norm2(z)); the stream stays float32."""

    config: AdaPerceiverConfig
    dtype: DTypeLike = jnp.float32
    attention: str = "cut"

    @nn.compact
    def __call__(
        self, z: jax.Array, drop_path: jax.Array, run: Run
    ) -> tuple[jax.Array, jax.Array | None]:
        """z (B, N, D) -> z (B, N, D), twice if the run keeps latents."""
        c = self.config
        attention = LatentAttention(
            **c.attention, dtype=self.dtype, implementation=self.attention, name="attn"
        )
        sizes = (c.embed_dim, c.hidden_units(c.full_width), c.embed_dim)
        ffn = FFN(*sizes, c.ffn_layer, c.act_layer, c.proj_drop, self.dtype, name="ffn")

        def branch(x: jax.Array, scale: str) -> jax.Array:
            x = x.astype(jnp.float32)
            if c.layer_scale:
                x = LayerScale(c.embed_dim, c.layer_scale, name=scale)(x)
            if run.train and c.drop_path:
                x = stochastic_depth(x, drop_path, self.make_rng("dropout"))
            return x

        norm1 = LayerNorm(c.embed_dim, dtype=self.dtype, name="norm1")
        norm2 = LayerNorm(c.embed_dim, dtype=self.dtype, name="norm2")
        z = z + branch(attention(norm1(z), run.rope, run.mask, run.train), "ls1")
        z = z + branch(ffn(norm2(z), run.hidden, run.hidden_per_sample, run.train), "ls2")
        return z, (z if run.keep_latents else None)


def stacked_blocks(
    config: AdaPerceiverConfig, dtype: DTypeLike, attention: str, remat: bool, unroll: int
) -> nn.Module:
    """All blocks as one scan over parameters (L, ...): compiled once, whatever the depth."""
    block = nn.remat(Block, prevent_cse=False, policy=KEEP_PRODUCTS) if remat else Block
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        unroll=unroll,
    )
    return scanned(config, dtype, attention)


def run_blocks(module: nn.Module, z: jax.Array, run: Run, depth: int) -> tuple:
    """The first `depth` of `module.blocks`: z (B, N, D) -> z, latents (depth, B, N, D) or None.

    Fewer than all run in a loop that picks each block's parameters out of the stack: to scan over
    a part of the stack, XLA would first copy that part.
    """
    config: AdaPerceiverConfig = module.config
    rates = jnp.linspace(0, config.drop_path, config.depth)
    if depth == config.depth or module.is_initializing():
        return module.blocks(z, rates, run)
    noisy = run.train and (config.attn_drop or config.proj_drop or config.drop_path)
    key = module.make_rng("dropout") if noisy else None
    stack = module.variables["params"]["blocks"]
    block = Block(config, module.dtype, module.attention, parent=None)

    def step(z: jax.Array, l: jax.Array) -> tuple:
        rngs = None if key is None else {"dropout": jax.random.fold_in(key, l)}
        return apply_block(block, stack, l, z, run, rates[l], rngs)

    if module.remat:
        step = jax.checkpoint(step, prevent_cse=False, policy=KEEP_PRODUCTS)
    return jax.lax.scan(step, z, jnp.arange(depth), unroll=min(module.unroll, depth))


def apply_block(
    block: Block,
    stack: Any,
    l: jax.Array | int,
    z: jax.Array,
    run: Run,
    drop_path: jax.Array | float = 0.0,
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs block l of a stack of parameters (L, ...), as a block's call; l may be traced."""
    params = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, l, keepdims=False), stack)
    return cast(tuple, block.apply({"params": params}, z, drop_path, run, rngs=rngs))
