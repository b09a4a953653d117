"""Components against NumPy's covariance; shared passes against calls of their own."""

import functools

import jax
import numpy as np
import pytest

from adaperceiver_jax.evaluate import components
from adaperceiver_jax.evaluate.components import Panel, SubNetwork
from tests.convert.test_names import MODELS
from tests.small_models import random_images, random_params, run, tiny

CLOSE = dict(rtol=2e-5, atol=2e-5)
WIDE = dict(size=(12, 20), output_feat_dim=6)
FEW = dict(max_latent_tokens=12, token_granularities=(2, 8), depth=1)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def alone(model, params, images, sub_network):
    return run(model, params, images, **sub_network._asdict()).features


@pytest.mark.parametrize(
    ("fields", "sub_networks"),
    [
        (dict(depth=2), [(16, 24, l) for l in (1, 2)]),
        slow(dict(depth=1, max_width=16, widths=(8, 16)), [(16, 16, 1), (16, 8, 1)]),
        # trained, between, beyond; 12 ends a block here only because it is the maximum
        slow(dict(**FEW, block_mask="block"), [(t, 24, 1) for t in (2, 3, 8, 24)]),
        (dict(**FEW, block_mask="none"), [(2, 24, 1), (12, 24, 1)]),
    ],
    ids=["depths", "widths", "block", "none"],
)
def test_features_are_those_of_a_call_for_each_sub_network(fields, sub_networks):
    model, params, images = tiny(**WIDE, **fields)
    sub_networks = [SubNetwork(*each) for each in sub_networks]
    found = components.patch_features(model, params, images, sub_networks)
    assert found.shape == (len(sub_networks), 2, 15, 6)
    for features, sub_network in zip(found, sub_networks, strict=True):
        np.testing.assert_allclose(features, alone(model, params, images, sub_network), **CLOSE)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    with pytest.raises(ValueError, match=r"depth=4: must be in 1\.\."):
        components.patch_features(model, params, images, [SubNetwork(16, 16, 4)])


def test_a_dense_models_features_are_those_its_head_is_given():
    model = MODELS["segmentation"]
    params, images = random_params(model), random_images(model.config.backbone)
    kept = lambda module, method: (module.name, method) == ("backbone", "__call__")  # noqa: E731
    catch = dict(capture_intermediates=kept, mutable=["intermediates"])
    _, state = jax.jit(lambda p, x: model.apply({"params": p}, x, **catch))(params, images)
    want = state["intermediates"]["backbone"]["__call__"][0].features
    inner = components.feature_model(model)
    assert components.feature_model(MODELS["depth"]) == inner
    whole = [components.whole_network(inner.config)]
    found = components.patch_features(
        inner, components.feature_params(model, params), images, whole
    )
    np.testing.assert_allclose(found[0], want, **CLOSE)


def test_a_model_without_patch_features_is_refused():
    for name, message in (
        ("classification", "a classifier .output_feat_dim=None., which has no patch features"),
        ("vit", "model=ViT: must be an AdaPerceiver"),
        ("vit segmentation", "model=SegmentationModel: must be an AdaPerceiver, or .* on one"),
    ):
        with pytest.raises(ValueError, match=message):
            components.feature_model(MODELS[name])


def test_components_are_the_covariances_eigenvectors():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    spread = np.array([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    features = 7 + (rng.standard_normal((2, 40, 6)) * spread) @ turn
    vectors = np.linalg.eigh(np.cov(features[1].T))[1][:, :-4:-1]  # (6, 3), the largest first
    vectors = vectors * np.array([1 if max(v) == max(abs(v)) else -1 for v in vectors.T])
    want = (features - features[1].mean(0)) @ vectors
    ordered = np.sort(want[1], axis=0)  # percentile p lies at p % of the way through 40 values
    low = ordered[0] + 0.39 * (ordered[1] - ordered[0])
    high = ordered[-1] - 0.39 * (ordered[-1] - ordered[-2])
    want = np.clip((want - low) / (high - low), 0, 1)
    found = components.principal_components(features, features[1])
    np.testing.assert_allclose(found, want, atol=1e-9)
    assert found[1].min() == 0
    assert found[1].max() == 1


def test_a_component_that_does_not_vary_is_grey_and_too_few_are_refused():
    line = np.linspace(0, 1, 20, dtype=np.float32)[:, None] * np.arange(1, 5, dtype=np.float32) + 5
    found = components.principal_components(line, line)
    assert np.ptp(found[:, 0]) == 1
    np.testing.assert_array_equal(found[:, 1:], 0.5)
    for shape in ((3, 8), (16, 2)):
        with pytest.raises(ValueError, match="at least 4 patches of 3 features"):
            components.principal_components(np.ones(shape), np.ones(shape))


def test_panels_stand_by_image_and_none_changes_another():
    model, params, images = tiny(**WIDE, depth=2)
    few, many = ([SubNetwork(16, 24, l) for l in depths] for depths in ((1,), (2, 1)))
    (one,) = components.component_panels(model, params, images[1:], ["b"], few)
    panels = components.component_panels(model, params, images, ["a", "b"], many)
    places = [(p.image, p.sub_network.depth) for p in panels]
    assert places == [("a", 2), ("a", 1), ("b", 2), ("b", 1)]
    assert one.colours.shape == (3, 5, 3)
    np.testing.assert_allclose(one.colours, panels[3].colours, atol=1e-3)
    whole = np.asarray(alone(model, params, images, SubNetwork(16, 24, 2)))[0]
    np.testing.assert_allclose(
        panels[0].colours.reshape(15, 3), components.principal_components(whole, whole), atol=1e-3
    )


def some_panels():
    rng = np.random.default_rng(0)
    return [
        Panel("a, b.png", None, rng.random((4, 6, 3))),
        Panel("a, b.png", SubNetwork(4, 8, 2), rng.random((2, 3, 3))),
        Panel("c", SubNetwork(4, 8, 2), rng.random((2, 3, 3))),
    ]


def test_panels_come_back_from_their_csv_and_a_broken_one_says_where(tmp_path):
    panels, path = some_panels(), tmp_path / "panels.csv"
    text = components.csv_text(panels)
    path.write_text(text)
    assert text.startswith("image,num_tokens,width,depth,row,column,red,green,blue\n")
    again = components.read_panels(path)
    assert [(p.image, p.sub_network) for p in again] == [(p.image, p.sub_network) for p in panels]
    for ours, want in zip(again, panels, strict=True):
        np.testing.assert_allclose(ours.colours, want.colours, atol=5.1e-5)  # four decimals
    for broken, message in (
        ("", "must begin with the columns image,"),
        (text.splitlines()[0], "holds no panel"),
        (text.replace(",4,8,2,0,1,", ",4,8,x,0,1,", 1), "line 27: .*'x'"),
        (text[: text.rindex(",")], "line 37: "),
        (text[: text.rstrip().rindex("\n")], "has 5 cells of 2 x 3; write"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=message):
            components.read_panels(path)
