"""The two savings that training rests on, as FLOPs of the full-size model's programs: nothing is
compiled or timed, so a change that loses one fails here and not on a pod (docs/readout_cost.md)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.tasks.classify import Classify
from adaperceiver_jax.tasks.once_for_all import LossSettings
from adaperceiver_jax.train.step import loss_and_gradients

CONFIG = ap.AdaPerceiverConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneReadout(Classify):
    """One forward of all tokens, read out once, at its end."""

    def loss(self, params, constants, samples, shared, key):
        out: Any = self.model.apply({"params": params}, samples["images"], train=True)
        loss = self.logit_loss(out.logits, samples["labels"])
        return loss, {"label": loss}


def step_flops(task: Classify) -> float:
    """XLA's count of the loss and the gradients for two images, as written."""
    size = CONFIG.image_size
    images = jax.ShapeDtypeStruct((2, size, size, CONFIG.in_channels), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((2,), jnp.int32)}

    def step(params, batch):
        draw_key, key = jax.random.split(jax.random.key(0))
        samples, shared = task.draw(batch, draw_key, 0)
        return loss_and_gradients(task, params, {}, {}, samples, shared, key)

    return jax.jit(step).lower(ap.param_shapes(task.model), batch).cost_analysis()["flops"]


@pytest.mark.nightly(group="counts")
def test_a_once_for_all_step_costs_a_plain_step_and_little_more():
    """27 readouts and a width per sample: 1.0054 x."""
    model = ap.AdaPerceiver(CONFIG, unroll=CONFIG.depth)  # XLA counts a loop's body once
    plain = step_flops(OneReadout(model=model, settings=LossSettings(depths=False, widths=False)))
    readouts = step_flops(Classify(model=model, settings=LossSettings(widths=False)))
    all_of_it = step_flops(Classify(model=model))
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
    """4 N H D per sample instead of 4 N D^2; work that a batch shares is not counted. That they are
    the same tests/models/test_properties.py says."""
    model = ap.AdaPerceiver(CONFIG)

    def a_sample(write: Callable) -> float:
        size = (CONFIG.max_latent_tokens, CONFIG.embed_dim)
        shapes = (jax.ShapeDtypeStruct((batch, *size), jnp.float32) for batch in (2, 3))
        lowered = [jax.jit(write).lower(ap.param_shapes(model), shape) for shape in shapes]
        two, three = (program.cost_analysis()["flops"] for program in lowered)
        return three - two

    assert 0 < a_sample(folded(model)) / a_sample(plain(model)) < 0.025
