"""The dense heads against formulas of their own."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.models import dense
from tests.small_models import TINY, random_images, random_params, run

CLOSE = dict(rtol=2e-5, atol=2e-5)
BACKBONE = ap.AdaPerceiverConfig(**{**TINY, "num_classes": None}, output_feat_dim=6)


def linear_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) weights of bilinear resampling with half-pixel centres, clamped at the edges."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(centre), old - 2) if old > 1 else 0
        matrix[i, low] += 1 - (centre - low)
        if old > 1:
            matrix[i, low + 1] += centre - low
    return matrix


def bilinear(x, height, width):
    x = np.einsum("ij,...jkc->...ikc", linear_matrix(x.shape[-3], height), x)
    return np.einsum("ij,...kjc->...kic", linear_matrix(x.shape[-2], width), x)


def test_bilinear_resizing():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(dense.resize_bilinear(x, 12, 7), bilinear(x, 12, 7), **CLOSE)


def features(model, params, images):
    backbone = ap.AdaPerceiver(BACKBONE)
    return np.asarray(run(backbone, params["backbone"], images).features).reshape(2, 3, 5, 6)


def test_segmentation():
    model = ap.SegmentationModel(ap.SegmentationConfig(backbone=BACKBONE, num_classes=3))
    params, images = random_params(model), random_images(BACKBONE, size=(12, 20))
    x, head = features(model, params, images), params["head"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * head["bn"]["scale"] + head["bn"]["bias"]
    x = x @ head["conv_seg"]["kernel"][0, 0] + head["conv_seg"]["bias"]
    np.testing.assert_allclose(run(model, params, images).logits, bilinear(x, 12, 20), **CLOSE)


def test_depth():
    config = ap.DepthConfig(backbone=BACKBONE, bins=4, min_depth=0.5, max_depth=8.0)
    model = ap.DepthModel(config)
    params, images = random_params(model), random_images(BACKBONE, size=(12, 20))
    x, conv = features(model, params, images), params["head"]["conv_seg"]
    x = np.pad(bilinear(x, 12, 20), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(x[:, i : i + 12, j : j + 20] @ conv["kernel"][i, j] for i in range(3) for j in range(3))
    y = np.maximum(y + conv["bias"], 0) + 0.1
    want = (y / y.sum(-1, keepdims=True)) @ np.linspace(0.5, 8.0, 4)
    got = run(model, params, images).depth
    np.testing.assert_allclose(got, bilinear(want[..., None], 12, 20)[..., 0], **CLOSE)
    assert got.min() >= 0.5
    assert got.max() <= 8.0


@pytest.mark.parametrize("kind", [ap.SegmentationModel, ap.DepthModel])
def test_token_granularities_of_one_call_replace_the_configs(kind):
    """Segmentation trains at a granularity beyond the config's."""
    granularities = (4, 16, 32)
    other = BACKBONE.replace(token_granularities=granularities)
    if kind is ap.SegmentationModel:
        configs = [ap.SegmentationConfig(backbone=b, num_classes=3) for b in (BACKBONE, other)]
    else:
        configs = [ap.DepthConfig(backbone=b, bins=4) for b in (BACKBONE, other)]
    model, changed = (kind(config) for config in configs)
    params, images = random_params(model), random_images(BACKBONE)
    for method in (None, "readouts"):
        (ours,) = jax.tree.leaves(
            run(model, params, images, method, token_granularities=granularities)
        )
        (want,) = jax.tree.leaves(run(changed, params, images, method))
        np.testing.assert_allclose(ours, want, **CLOSE)
        (plain,) = jax.tree.leaves(run(model, params, images, method))
        assert plain.shape != ours.shape or np.abs(plain - ours).max() > 1e-4


@pytest.mark.parametrize("kind", [ap.SegmentationModel, ap.DepthModel])
def test_readouts_are_every_granularitys_own_prediction(kind):
    if kind is ap.SegmentationModel:
        model = kind(ap.SegmentationConfig(backbone=BACKBONE, num_classes=3))
    else:
        model = kind(ap.DepthConfig(backbone=BACKBONE, bins=4))
    params, images = random_params(model), random_images(BACKBONE)
    (many,) = jax.tree.leaves(run(model, params, images, "readouts"))
    assert len(many) == len(BACKBONE.token_granularities)
    for ours, t in zip(many, BACKBONE.token_granularities, strict=True):
        (one,) = jax.tree.leaves(run(model, params, images, num_tokens=t))
        np.testing.assert_allclose(ours, one, **CLOSE)
