"""What all readouts of a step cost, as FLOPs of the full-size model's programs: nothing is compiled
or timed, so a change that loses the saving fails here and not on a pod (docs/readout_cost.md)."""

import dataclasses
from typing import Any

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
