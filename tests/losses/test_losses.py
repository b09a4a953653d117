"""Every loss against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.losses.classification import soft_cross_entropy
from adaperceiver_jax.losses.depth import gradient_loss, sig_loss
from adaperceiver_jax.losses.distillation import distillation_kl, feature_loss
from adaperceiver_jax.losses.once_for_all import depth_weights, weighted_mean, weighted_sum
from adaperceiver_jax.losses.segmentation import pixel_cross_entropy

pytestmark = pytest.mark.quick
RNG = np.random.default_rng(0)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_weights_of_the_depths_and_what_they_weigh():
    np.testing.assert_allclose(depth_weights(4), [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(depth_weights(4, "uniform"), [0.25] * 4)
    with pytest.raises(ValueError, match="schedule='square': must be one of linear, uniform"):
        depth_weights(4, "square")
    losses, weights = jnp.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 2.0])
    assert float(weighted_mean(losses, weights)) == pytest.approx(11 / 4)
    assert float(weighted_sum(losses, weights)) == pytest.approx(11)


def test_cross_entropy_of_soft_labels():
    logits, labels = RNG.standard_normal((3, 4, 5)), RNG.random((4, 5))
    labels /= labels.sum(-1, keepdims=True)
    want = -(labels * log_softmax(logits)).sum(-1).mean(-1)
    np.testing.assert_allclose(soft_cross_entropy(logits, labels), want, rtol=1e-5)


def test_distillation():
    temperature = 3.0
    logits, teacher = RNG.standard_normal((2, 4, 5)), RNG.standard_normal((4, 5))
    p, q = log_softmax(teacher / temperature), log_softmax(logits / temperature)
    want = (np.exp(p) * (p - q)).sum(-1).mean(-1) * temperature**2
    np.testing.assert_allclose(distillation_kl(logits, teacher, temperature), want, rtol=1e-4)
    assert abs(float(distillation_kl(teacher, teacher, temperature))) < 1e-6


def test_features():
    ours, teacher = 2 * RNG.standard_normal((2, 3, 4, 5)), RNG.standard_normal((3, 4, 5))
    cosine = (ours * teacher).sum(-1)
    cosine /= np.linalg.norm(ours, axis=-1) * np.linalg.norm(teacher, axis=-1)
    error = np.abs(ours - teacher)
    smooth = np.where(error < 1, error**2 / 2, error - 0.5).mean(-1)
    want = (0.9 * (1 - cosine) + 0.1 * smooth).mean((-2, -1))
    np.testing.assert_allclose(feature_loss(ours, teacher), want, rtol=1e-5)
    teacher = jnp.asarray(teacher, jnp.float32)
    assert np.isfinite(jax.grad(lambda x: feature_loss(x, teacher))(0 * teacher)).all()


def test_segmentation_ignores_unlabelled_pixels():
    logits, labels = RNG.standard_normal((2, 2, 3, 4, 5)), RNG.integers(0, 5, (2, 3, 4))
    labels[RNG.random((2, 3, 4)) < 0.4] = 255
    nll = -np.take_along_axis(
        log_softmax(logits), np.where(labels == 255, 0, labels)[None, ..., None], -1
    )[..., 0]
    want = np.where(labels == 255, 0, nll)
    np.testing.assert_allclose(pixel_cross_entropy(logits, labels), want, rtol=1e-5)


@pytest.fixture
def depths():
    pred, depth = RNG.uniform(0.5, 9, (2, 9, 13)), RNG.uniform(0.5, 12, (2, 9, 13))
    depth[RNG.random(depth.shape) < 0.2] = 0  # holes; beyond 10 m does not count either
    return pred.astype(np.float32), depth.astype(np.float32)


def test_sig_loss(depths):
    pred, depth = depths
    valid = (depth > 0) & (depth <= 10)
    g = np.log(pred[valid] + 1e-3) - np.log(depth[valid] + 1e-3)
    want = np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    np.testing.assert_allclose(sig_loss(pred, depth), want, rtol=1e-5)
    want = np.sqrt(0.15 * g.mean() ** 2)
    np.testing.assert_allclose(sig_loss(pred, depth, warm_up=True), want, rtol=1e-4)


@pytest.mark.parametrize("reference_axes", [False, True])
def test_gradient_loss(depths, reference_axes):
    pred, depth = depths
    if reference_axes:  # batch and channel; made long enough to have something to slice
        pred, depth = pred.reshape(9, 2, 13), depth.reshape(9, 2, 13)
        pred4, depth4 = pred[:, None], depth[:, None]
    else:
        pred4, depth4 = (x.transpose(1, 2, 0) for x in (pred, depth))  # the two axes in front
    want = 0.0
    for stride in (1, 2, 4, 6):
        p, d = pred4[::stride, ::stride], depth4[::stride, ::stride]
        valid = (d > 0) & (d <= 10)
        g = np.where(valid, np.log(p + 1e-3) - np.log(d + 1e-3), 0)
        down = np.abs(g[:-2] - g[2:])[valid[:-2] & valid[2:]].sum()
        right = np.abs(g[:, :-2] - g[:, 2:])[valid[:, :-2] & valid[:, 2:]].sum()
        want += (down + right) / valid.sum()
    np.testing.assert_allclose(gradient_loss(pred, depth, reference_axes), want, rtol=1e-4)
    assert want > 0


@pytest.mark.parametrize("loss", [sig_loss, gradient_loss])
def test_depth_losses_are_finite_at_their_edges(depths, loss):
    """Where all is right, and where no pixel is valid."""
    pred = jnp.asarray(depths[0])
    for depth in (pred, jnp.zeros_like(pred)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(pred, depth)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: soft_cross_entropy(jnp.ones((4, 5)), jnp.ones(4)),
        lambda: distillation_kl(jnp.ones((3, 4, 5)), jnp.ones((1, 5))),
        lambda: feature_loss(jnp.ones((2, 3, 5)), jnp.ones((2, 1, 5))),
        lambda: pixel_cross_entropy(jnp.ones((2, 3, 4, 5)), jnp.ones((2, 1, 4), int)),
        lambda: sig_loss(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 1))),
        lambda: gradient_loss(jnp.ones((2, 3, 4, 1)), jnp.ones((2, 3, 4))),
        lambda: weighted_mean(jnp.ones(4), np.ones(1)),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(call):
    with pytest.raises(AssertionError):
        call()
