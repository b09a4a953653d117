"""Other ways to compute what the model computes: the same numbers, or to rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from adaperceiver_jax.models.attention import LatentAttention
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.latent_stream import Block
from adaperceiver_jax.models.layers import affine

Logits = Callable[..., jax.Array]


def as_users_call_it(model: ap.AdaPerceiver, tokens: int) -> Logits:
    """(params, images) -> logits: blocks in a loop, attention cut by granularity."""

    def call(params: Any, images: jax.Array) -> jax.Array:
        out: Any = model.apply({"params": params}, images, num_tokens=tokens)
        return out.logits

    return call


def of_listed_blocks(model: ap.AdaPerceiver, tokens: int) -> Logits:
    """(params whose 'blocks' are a list, images) -> logits: each block's weights an array."""
    block = Block(model.config, model.dtype, model.attention)

    def call(params: Any, images: jax.Array) -> jax.Array:
        variables: Any = {"params": {**params, "blocks": {}}}
        start: Any = model.apply(variables, images, tokens, None, None, None, False, method="start")
        z = start.latents
        for each in params["blocks"]:
            z = block.apply({"params": each}, z, 0.0, start.run)[0]
        folded = model.apply(variables, start.run.rope, method="fold")
        logits: Any = model.apply(variables, z, folded, method="write_logits")
        return logits

    return call


def listed(params: Any) -> Any:
    """The same weights, the blocks a list."""
    depth = len(jax.tree.leaves(params["blocks"])[0])
    blocks = [jax.tree.map(lambda p, l=l: p[l], params["blocks"]) for l in range(depth)]
    return {**params, "blocks": blocks}


def one_product(weights: Callable[[LatentAttention], tuple[jax.Array, jax.Array]]) -> Any:
    """Inside, latents' q, k and v come of one product; `weights` gives its kernel and bias."""
    made: dict[str, jax.Array] = {}

    def fuse(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        attention = layer.parent
        inside = context.method_name == "__call__" and isinstance(attention, LatentAttention)
        if not inside or layer.name not in ("q", "k", "v"):
            return call(*args, **kwargs)
        if layer.name == "q":  # the first of the three
            y = affine(args[0], *weights(attention), layer.dtype, layer.dtype)
            made.update(zip("qkv", jnp.split(y, 3, axis=-1), strict=True))
        return made.pop(layer.name)

    return nn.intercept_methods(fuse)


def with_fused_qkv(model: ap.AdaPerceiver, tokens: int) -> Logits:
    """(params with 'qkv' in the blocks' attention, images) -> logits: one product for all three."""

    def weights(attention: LatentAttention) -> tuple[jax.Array, jax.Array]:
        found = attention.variables["params"]["qkv"]
        return found["kernel"], found["bias"]

    def call(params: Any, images: jax.Array) -> jax.Array:
        with one_product(weights):
            out: Any = model.apply({"params": params}, images, num_tokens=tokens)
        return out.logits

    return call


def fused(params: Any) -> Any:
    """The same weights, with those of q, k and v side by side as well."""
    attention = params["blocks"]["attn"]
    qkv = {
        leaf: jnp.concatenate([attention[name][leaf] for name in "qkv"], axis=-1)
        for leaf in ("kernel", "bias")
    }
    return {**params, "blocks": {**params["blocks"], "attn": {**attention, "qkv": qkv}}}


def balanced_widths(widths: Sequence[int], count: int) -> list[int]:
    """A width a sample, all of them equally often, the middle one for those that are left over: on
    a CPU a step takes as long as its widths ask for, which a few draws would not tell."""
    middle = sorted(widths)[len(widths) // 2]
    return [*widths] * (count // len(widths)) + [middle] * (count % len(widths))


def kernel_gradient(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """x (B, N, m), kernel (m, n), gradient of their product (B, N, n) -> the kernel's (m, n)."""
    product = functools.partial(affine, bias=None, dtype=x.dtype, out_dtype=x.dtype)
    return jax.vjp(functools.partial(product, x), kernel)[1](grad)[0]


def kernel_gradient_over_two_axes(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """The same, as the model has it for other devices than CPUs."""
    return jnp.tensordot(x, grad, ((0, 1), (0, 1)), preferred_element_type=kernel.dtype)


def ffns(config: ap.AdaPerceiverConfig, width: int, dtype: Any, params: Any) -> dict[str, tuple]:
    """A block's FFN at a width, by name a function (params, x) -> y and its parameters: the hidden
    units cut in the call from `params`, or a copy of them, filled up with zeros to whole tiles."""
    hidden, dim = config.hidden_units(width), config.embed_dim
    whole = FFN(dim, config.hidden_units(config.full_width), dim, dtype=dtype)
    found = {"cut in the call": (lambda p, x: whole.apply({"params": p}, x, hidden), params)}
    for multiple in (1, 8, 16, 128):
        padded = -(-hidden // multiple) * multiple
        ffn = FFN(dim, padded, dim, dtype=dtype)
        name = f"a copy of {hidden:,}" if padded == hidden else f"filled up to {padded:,}"
        call = functools.partial(lambda ffn, p, x: ffn.apply({"params": p}, x), ffn)
        found[name] = call, narrowed(params, hidden, padded)
    return found


def narrowed(params: Any, hidden: int, padded: int) -> Any:
    """An FFN's first `hidden` units, and zeros up to `padded`: the same function."""
    fill = padded - hidden
    first, second = params["fc1"], params["fc2"]
    return {
        "fc1": {
            "kernel": jnp.pad(first["kernel"][:, :hidden], ((0, 0), (0, fill))),
            "bias": jnp.pad(first["bias"][:hidden], (0, fill)),
        },
        "fc2": {
            "kernel": jnp.pad(second["kernel"][:hidden], ((0, fill), (0, 0))),
            "bias": second["bias"],
        },
    }
