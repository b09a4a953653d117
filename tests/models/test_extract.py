"""Extracted models: the same numbers from fewer parameters, and a model like any other."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.models.test_dense import BACKBONE, VIT
from tests.small_models import TINY, model_and_params, random_images, random_params, run, tiny

CLOSE = dict(rtol=1e-5, atol=1e-5)


def test_it_computes_what_the_original_does_and_converts_like_any_other(tmp_path):
    model, params = model_and_params(1, ffn_layer="swiglu", depth=3)
    c, images = model.config, random_images(model.config)
    width = c.widths[0]
    small, small_params = ap.extract(model, params, width=width, depth=2)
    assert ap.count_params(small_params) < ap.count_params(params)
    ap.save_pretrained(small, small_params, tmp_path)
    loaded, loaded_params = ap.from_pretrained(tmp_path)
    assert loaded == small
    ours = run(loaded, loaded_params, images, num_tokens=3)
    want = run(model, params, images, num_tokens=3, width=width, depth=2)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_it_still_has_its_own_smaller_sub_networks_and_no_larger_ones():
    model, params, images = tiny()
    small, small_params = ap.extract(model, params, width=16)
    assert small.config.widths == (8, 16)
    ours = run(small, small_params, images, width=8, depth=1).logits
    np.testing.assert_allclose(ours, run(model, params, images, width=8, depth=1).logits, **CLOSE)
    out = run(small, small_params, images, "readouts", widths=np.array([8, 16]))
    want = run(model, params, images, "readouts", widths=np.array([8, 16]))
    np.testing.assert_allclose(out.token_logits, want.token_logits, **CLOSE)
    with pytest.raises(ValueError, match=r"width=24: must be in 1\.\.16"):
        run(small, small_params, images, width=24)


def test_its_blocks_keep_their_rates_of_stochastic_depth():
    config = ap.AdaPerceiverConfig(**{**TINY, "depth": 5}, drop_path=0.4)
    assert ap.extract_config(config, depth=3).drop_path == pytest.approx(0.2)
    assert ap.extract_config(config, depth=1).drop_path == 0
    assert ap.extract_config(config).drop_path == 0.4


def test_a_dense_model_is_cut_through_its_backbone():
    model = ap.SegmentationModel(ap.SegmentationConfig(backbone=BACKBONE, num_classes=5))
    params, images = random_params(model), random_images(BACKBONE)
    small, small_params = ap.extract(model, params, width=8, depth=2)
    ours = run(small, small_params, images).logits
    want = run(model, params, images, width=8, depth=2).logits
    np.testing.assert_allclose(ours, want, **CLOSE)


def test_the_whole_of_a_model_is_itself_and_nothing_shares_memory():
    on_vit = ap.DepthModel(ap.DepthConfig(backbone=VIT, bins=4, class_token=True, mlp=True))
    for model, params in ((on_vit, random_params(on_vit)), model_and_params(0, depth=3)):
        whole, whole_params = ap.extract(model, params)
        assert whole.config == model.config
        jax.tree.map(np.testing.assert_array_equal, whole_params, params)
    for convert in (np.asarray, jax.numpy.asarray):
        params = jax.tree.map(convert, params)
        for arguments in ({}, {"depth": 1}, {"width": model.config.widths[0]}):
            small = ap.extract(model, params, **arguments)[1]
            shared = jax.tree.map(
                lambda a, b: np.shares_memory(*map(np.asarray, (a, b))), small, params
            )
            assert not any(jax.tree.leaves(shared))
