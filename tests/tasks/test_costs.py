"""Costs by XLA's count: FLOPs of a step, which is what the tasks say of it, and remat's bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.flops import flops, readout_flops
from adaperceiver_jax.losses.classification import soft_cross_entropy
from adaperceiver_jax.tasks.once_for_all import LossSettings, OnceForAll, Targets
from adaperceiver_jax.tasks.segment import Segment
from tests.small_models import TINY
from tests.tasks.test_dense import BACKBONE
from tests.train.small import counted_flops

pytestmark = pytest.mark.optimised
SIZES = dict(
    embed_dim=192,
    depth=4,
    image_size=32,
    max_latent_tokens=64,
    token_granularities=(16, 64),
    ffn_ratio=4.0,
    use_embed_ffn=False,
)
"""Large enough that products are most of the work."""
HEADS = ("backbone/(write_head|output_latents|output_adapter)/.*", "head/.*")


class Known(OnceForAll):
    """Learns a teacher of zeros."""

    def targets(self, constants, samples):
        c = self.model.config
        features = (len(samples["images"]), c.grid_size**2, c.output_feat_dim or 0)
        return Targets(samples["labels"], jnp.zeros(features))

    def logit_loss(self, logits, labels):
        return soft_cross_entropy(logits, labels)


READOUTS = ("(write_head|output_latents|output_adapter)(_feat)?/.*",)


@pytest.mark.nightly(group="counts")
@pytest.mark.parametrize(
    ("patterns", "depths", "features"), [((), True, 32), (READOUTS, False, None)]
)
def test_a_step_costs_what_is_said_of_it(monkeypatch, patterns, depths, features):
    """By XLA's count; images have no gradient, and norms and softmaxes are not counted by us."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = ap.AdaPerceiverConfig(**{**TINY, **SIZES, "widths": ()}, output_feat_dim=features)
    task = Known(
        model=ap.AdaPerceiver(config, unroll=4),
        settings=LossSettings(widths=False, depths=depths, features=features is not None),
    )
    batch = {"image": np.zeros((2, 32, 32, 3), np.uint8), "label": np.zeros(2, np.int32)}
    trained, counted = counted_flops(task, batch, patterns)
    assert 0.9 * counted < task.train_flops(trained) < 1.02 * counted


@pytest.mark.nightly(group="counts")
def test_the_frozen_encoder_runs_once_and_forward_only(monkeypatch):
    """A step costs the encoder's forward and three times what is trained, by XLA's count."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    backbone = BACKBONE.replace(**SIZES, output_feat_dim=32)
    config = ap.SegmentationConfig(backbone=backbone, num_classes=3)
    model = ap.SegmentationModel(config, unroll=4)
    task = Segment(model=model, image_size=(32, 32))
    batch = {
        "image": np.zeros((2, 32, 32, 3), np.uint8),
        "segmentation": np.zeros((2, 32, 32), np.uint8),
    }
    trained, frozen = counted_flops(task, batch, HEADS)
    encoder = flops(config, 64).encoder
    heads = readout_flops(config, (16, 64))
    assert task.train_flops(trained) == encoder + 3 * heads
    assert task.train_flops({"backbone": {"blocks": {}}}) == 3 * (encoder + heads)
    # the trained parts need no gradient of the patches and latents that they read
    assert encoder + 2 * heads < frozen < 1.05 * task.train_flops(trained)


@pytest.mark.nightly(group="counts")
def test_remat_keeps_products_and_little_else():
    """By XLA's count of temporary bytes, and of FLOPs, of which it takes a round of each loop."""
    sizes = {**SIZES, "embed_dim": 96, "depth": 6, "token_granularities": (64,)}
    config = ap.AdaPerceiverConfig(**{**TINY, **sizes, "widths": (), "ffn_ratio": 2.57})
    images = jnp.zeros((8, 32, 32, 3))

    def compiled(remat):
        model = ap.AdaPerceiver(config, remat=remat)

        def loss(params):
            return jnp.square(model.apply({"params": params}, images).logits).mean()

        gradients = jax.jit(jax.grad(loss)).lower(ap.param_shapes(model)).compile()
        return gradients.cost_analysis()["flops"], gradients.memory_analysis().temp_size_in_bytes

    (flops, kept), (again, left) = compiled(False), compiled(True)
    assert flops < again < 1.1 * flops
    assert left < 0.6 * kept
