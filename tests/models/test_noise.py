"""Dropout and stochastic depth: only in training, from the step's key, at the stated rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.models.test_dense import BACKBONE
from tests.models.test_dense import MODELS as DENSE
from tests.small_models import random_images, random_params, run, tiny

RATES = ("attn_drop", "proj_drop", "drop_path", "head_drop")


def noisy(model, params, images, seed=0, train=True):
    rngs = {"dropout": jax.random.key(seed)}
    read = np.array([2, 16, 4])
    return run(model, params, images, "readouts", rngs, readout_tokens=read, train=train)


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_each_rate_makes_noise_in_training_alone(rate):
    model, params, images = tiny(
        batch=4, output_feat_dim=6, use_output_ffn=True, layer_scale=None, **{rate: 0.5}
    )
    plain = ap.AdaPerceiver(model.config.replace(**{rate: 0.0}))
    quiet = noisy(model, params, images, train=False)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, quiet, noisy(plain, params, images))
    first, again = noisy(model, params, images), noisy(model, params, images)
    other = noisy(model, params, images, seed=1)
    for name in ("token_logits", "depth_logits", "token_features", "depth_features"):
        one, two, three = (getattr(out, name) for out in (first, again, other))
        np.testing.assert_array_equal(one, two)
        assert np.abs(one - three).max() > 1e-3, name
        assert np.abs(one - getattr(quiet, name)).max() > 1e-3, name


def test_stochastic_depth_grows_from_zero_at_the_first_block():
    model, params, images = tiny(batch=8, layer_scale=None, drop_path=0.9)
    first, other = (noisy(model, params, images, seed).depth_logits for seed in (0, 1))
    np.testing.assert_allclose(first[0], other[0], rtol=1e-5, atol=1e-5)
    assert np.abs(first[1] - other[1]).max() > 1e-3


def test_a_smaller_depth_is_as_noisy_and_needs_no_key_without_noise():
    model, params, images = tiny(layer_scale=None, proj_drop=0.5)

    def logits(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return run(model, params, images, rngs=rngs, depth=2, train=True).logits

    assert np.abs(logits(0) - logits(1)).max() > 1e-3
    quiet = ap.AdaPerceiver(model.config.replace(proj_drop=0.0))
    np.testing.assert_array_equal(
        run(quiet, params, images, depth=2, train=True).logits,
        run(quiet, params, images, depth=2).logits,
    )


def test_attention_dropout_keeps_the_expected_readout():
    model, params, images = tiny(batch=1, attn_drop=0.3, depth=1)
    params["blocks"] = jax.tree.map(jnp.zeros_like, params["blocks"])  # only reads and writes

    # Zeros closed over would be constants: of products with these, jaxlib 0.10.2 makes NaN on CPUs
    # where memory it has not written holds NaN.
    @jax.jit
    def draws(params, keys):
        def read(key):
            return model.apply({"params": params}, images, train=True, rngs={"dropout": key}).logits

        return jax.vmap(read)(keys)

    many = draws(params, jax.random.split(jax.random.key(0), 4000))
    assert many.std() > 1e-2
    # Dropping the read head's weights bends the mean through the norm, so the bar is loose.
    want = run(model, params, images).logits
    assert np.abs(many.mean(axis=0) - want).max() < 0.2 * np.abs(want).max()


@pytest.mark.parametrize("model", DENSE)
def test_head_dropout_of_dense_models(model):
    model = model.clone(config=dataclasses.replace(model.config, head_drop=0.5))
    params, images = random_params(model), random_images(BACKBONE)

    def predict(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return jax.tree.leaves(run(model, params, images, rngs=rngs, train=train))[0]

    np.testing.assert_array_equal(predict(0, False), predict(1, False))
    assert np.abs(predict(0, True) - predict(1, True)).max() > 1e-3
