"""Small models with weights that make every layer matter."""

import functools
import random

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap

TINY = dict(
    embed_dim=24,
    num_heads=3,
    depth=3,
    max_latent_tokens=16,
    token_granularities=(2, 4, 8, 16),
    widths=(8, 16, 24),
    image_size=16,
    patch_size=4,
    num_classes=5,
)


def random_config(seed: int, **fixed) -> ap.AdaPerceiverConfig:
    """Some valid configuration: sizes, variants and outputs drawn from the seed."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3])
    embed_dim = heads * draw.choice([6, 8, 10])
    patch = draw.choice([2, 4])
    granularities = tuple(sorted(draw.sample(range(1, 14), draw.choice([1, 2, 4]))))
    outputs = draw.choice([(5, None), (None, 6), (5, 6)])
    values = dict(
        embed_dim=embed_dim,
        num_heads=heads,
        depth=draw.choice([1, 2, 3]),
        max_latent_tokens=granularities[-1],
        token_granularities=granularities,
        widths=(embed_dim // 2, embed_dim),
        ffn_ratio=draw.choice([1.5, 2.57, 4.0]),
        ffn_layer=draw.choice(["mlp", "swiglu"]),
        act_layer=draw.choice(["gelu", "silu"]),
        qkv_bias=draw.random() < 0.7,
        proj_bias=draw.random() < 0.7,
        layer_scale=draw.choice([None, 0.1]),
        block_mask=draw.choice(["block", "block", "causal", "none"]),
        rope_theta=draw.choice([100, 10000]),
        process_token_init=draw.choice(["learned", "norm_randn"]),
        image_size=patch * draw.choice([2, 3]),
        patch_size=patch,
        in_channels=draw.choice([1, 3]),
        use_embed_ffn=draw.random() < 0.7,
        use_output_ffn=draw.random() < 0.5,
        num_classes=outputs[0],
        output_feat_dim=outputs[1],
    )
    return ap.AdaPerceiverConfig(**{**values, **fixed})


def random_params(model, seed: int = 0):
    """Parameters of the right scale, but far from their initial values."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, normal = path[-1].key, rng.standard_normal(leaf.shape)
        if name == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1]) if leaf.ndim == 4 else leaf.shape[-2]
            normal = normal / np.sqrt(fan_in)
        elif name in ("scale", "gamma"):
            normal = 1 + 0.2 * normal
        elif name == "bias":
            normal = 0.2 * normal
        return jax.numpy.asarray(normal, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, ap.param_shapes(model))


def random_images(config, batch: int = 2, seed: int = 0, size=None) -> np.ndarray:
    """Images (batch, H, W, C), at the config's size or at `size` (H, W)."""
    height, width = size or (config.image_size, config.image_size)
    shape = (batch, height, width, config.in_channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tiny(batch: int = 2, seed: int = 0, size=None, **fields):
    """(model, parameters, images) of TINY's sizes and the fields given."""
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, **fields}))
    return model, random_params(model, seed), random_images(model.config, batch, size=size)


def seeds(count: int) -> list:
    """Seeds of random configurations: 0 is quick, the others are slow."""
    first = pytest.param(0, marks=pytest.mark.quick)
    return [first, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, count))]


def model_and_params(seed: int, **fixed):
    """A random AdaPerceiver with random parameters."""
    model = ap.AdaPerceiver(random_config(seed, **fixed))
    return model, random_params(model, seed)


def run(model, params, images, method=None, rngs=None, **arguments):
    """model.apply under jit (op by op is far slower); arrays are traced, the rest is static."""
    arrays = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray | jax.Array)}
    static = tuple((k, v) for k, v in arguments.items() if k not in arrays)
    return _run(model, method, static, params, images, arrays, rngs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(model, method, static, params, images, arrays, rngs):
    return model.apply(
        {"params": params}, images, method=method, rngs=rngs, **arrays, **dict(static)
    )
