"""What does not compile anew: widths, random granularities, new images."""

import chex
import jax
import jax.numpy as jnp

import adaperceiver_jax as ap
from tests.small_models import random_images, tiny

MODEL, PARAMS, _ = tiny(output_feat_dim=6)
CONFIG = MODEL.config


def test_widths_and_random_granularities_do_not_retrace_a_training_step():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, images, key):
        width_key, read_key = jax.random.split(key)
        widths = jax.random.choice(width_key, jnp.array(CONFIG.widths), (len(images),))
        read = jax.random.choice(read_key, jnp.array(CONFIG.token_granularities), (3,))

        def loss(params):
            out = MODEL.apply(
                {"params": params}, images, widths=widths, readout_tokens=read, method="readouts"
            )
            return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(out))

        return jax.value_and_grad(loss)(params)[0]

    losses = [step(PARAMS, random_images(CONFIG), jax.random.key(seed)) for seed in range(5)]
    assert len({float(loss) for loss in losses}) == 5
    assert step._cache_size() == 1


def test_the_program_does_not_grow_with_depth():
    def size(depth):
        model = ap.AdaPerceiver(CONFIG.replace(depth=depth))
        images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        shapes = ap.param_shapes(model)
        lowered = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(shapes, images)
        return len(lowered.as_text())

    assert size(24) < 1.01 * size(3)
