"""The two savings that training rests on, as FLOPs of the full-size model's programs: nothing is
compiled or timed, so a change that loses one fails here and not on a pod."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.tasks.classify import Classify
from adaperceiver_jax.tasks.once_for_all import LossSettings
from experiments.readout_cost.run import count_flops, make_batch, one_readout
from tests.small_models import TINY, random_params

CONFIG = ap.AdaPerceiverConfig()


def test_a_once_for_all_step_costs_a_plain_step_and_little_more():
    """27 readouts and a width a sample: 1.0054 x."""
    model = ap.AdaPerceiver(CONFIG, unroll=CONFIG.depth)  # XLA counts a loop's body once
    batch = make_batch(CONFIG, 2)
    (plain,) = count_flops(one_readout(model), batch)
    (readouts,) = count_flops(Classify(model=model, settings=LossSettings(widths=False)), batch)
    (all_of_it,) = count_flops(Classify(model=model), batch)
    assert 1 < readouts / plain < all_of_it / plain < 1.006


def folded(model: ap.AdaPerceiver) -> Callable[[Any, jax.Array], Any]:
    """(params, latents (B, N, D)) -> logits (B, classes), as the model writes them."""

    def write(model: Any, z: jax.Array) -> jax.Array:
        return model.write_logits(z, model.fold(model.make_run(z.shape[1]).rope))

    return lambda params, z: nn.apply(write, model)({"params": params}, z)


def plain(model: ap.AdaPerceiver) -> Callable[[Any, jax.Array], Any]:
    """The same, with keys and values of every latent."""

    def write(model: Any, z: jax.Array) -> jax.Array:
        head, token = model.write_head, model.output_latents()
        output = jnp.broadcast_to(token, (len(z), *token.shape))
        keys, values = head.keys_values(z, model.make_run(z.shape[1]).rope)
        return model.output_adapter(head(output, head.queries(output), keys, values))[:, 0]

    return lambda params, z: nn.apply(write, model)({"params": params}, z)


def test_a_folded_readout_costs_a_fortieth_of_a_plain_one():
    """4 N H D a sample instead of 4 N D^2, and the rest; what a batch shares is not counted."""
    model = ap.AdaPerceiver(CONFIG)
    params = ap.param_shapes(model)

    def a_sample(write: Callable) -> float:
        size = (CONFIG.max_latent_tokens, CONFIG.embed_dim)
        shapes = (jax.ShapeDtypeStruct((batch, *size), jnp.float32) for batch in (2, 3))
        lowered = [jax.jit(write).lower(params, shape) for shape in shapes]
        two, three = (program.cost_analysis()["flops"] for program in lowered)
        return three - two

    assert 0 < a_sample(folded(model)) / a_sample(plain(model)) < 0.025


def test_both_readouts_are_the_same():
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))
    params = random_params(model)
    z = jax.random.normal(jax.random.key(0), (2, TINY["max_latent_tokens"], TINY["embed_dim"]))
    ours, theirs = (jax.jit(write(model))(params, z) for write in (folded, plain))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
