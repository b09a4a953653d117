"""A program is what was asked for, a ceiling is the best measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.small_models import TINY, random_params, run
from tools import speed
from tools.speed import Ceiling, Ceilings

MODEL = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))


def test_what_is_timed_is_the_sub_networks_call_with_the_least_it_must_touch():
    params = random_params(MODEL)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    program = speed.forward_program(MODEL, params, images, (4, 8, 1))
    want = run(MODEL, params, images, num_tokens=4, width=8, depth=1).logits
    np.testing.assert_allclose(program.call().logits, want, rtol=1e-5, atol=1e-5)
    small = ap.param_shapes(ap.AdaPerceiver(ap.extract_config(MODEL.config, width=8, depth=1)))
    held = 4 * (ap.count_params(small) + images.size + want.size)
    assert program.least_bytes == pytest.approx(held)


def test_of_a_dense_models_backbone_only_what_is_used_counts():
    backbone = MODEL.config.replace(num_classes=None, output_feat_dim=8)
    model = ap.SegmentationModel(ap.SegmentationConfig(backbone=backbone, num_classes=5))
    params, images = random_params(model), jnp.zeros((1, 16, 16, 3))
    program = speed.forward_program(model, params, images, (2, 8, 1))
    _, kept = ap.extract(model, params, width=8, depth=1)
    touched = ap.count_params(kept) + images.size + 16 * 16 * 5
    assert program.least_bytes == 4 * touched < 4 * ap.count_params(params)


def test_a_ceiling_is_the_best_measured_and_a_floor_the_larger_of_two(monkeypatch):
    measured = speed.measure_ceiling(jnp.float32, sides=(64,), megabytes=1, tries=2)
    assert min(measured.flops, measured.bandwidth) > 1e6
    found = iter([Ceiling(flops=100.0, bandwidth=5.0), Ceiling(flops=90.0, bandwidth=10.0)])
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: next(found))
    ceilings = Ceilings(jnp.float32)
    assert ceilings.best.floor(50, 20) == 4.0
    assert ceilings.measure().floor(50, 1) == 0.5
    assert ceilings.best.floor(50, 20) == 2.0


def test_where_bfloat16_is_slower_the_ceiling_is_float32s(monkeypatch):
    rates = {"bfloat16": 90.0, "float32": 100.0}
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: Ceiling(rates[dtype.name], 1.0))
    assert [Ceilings(name).best.flops for name in ("bfloat16", "float32")] == [100.0, 100.0]
    rates["bfloat16"] = 200.0
    assert [Ceilings(name).best.flops for name in ("bfloat16", "float32")] == [200.0, 100.0]
