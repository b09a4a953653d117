"""Early exit: where samples leave, what they leave with, and that the loop stops."""

import itertools

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.models import early_exit as module
from adaperceiver_jax.models import stepper
from tests.small_models import run, tiny

CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def setup():
    model, params, images = tiny(batch=8, seed=2, depth=5, layer_scale=None)
    read = np.full(5, model.config.max_latent_tokens)
    logits = np.asarray(run(model, params, images, "readouts", readout_tokens=read).depth_logits)
    confidence = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (confidence / confidence.sum(-1, keepdims=True)).max(-1)  # (L, B)
    return model, params, images, logits, confidence


def first_depth(confident) -> np.ndarray:
    """(L, B) bool -> (B,) the first depth that is confident, else the last."""
    return np.where(confident.any(0), confident.argmax(0) + 1, len(confident))


def telling_tau(confidence) -> float:
    """A threshold far from every confidence (L, B) that makes samples leave at many depths."""
    values = np.sort(np.ravel(confidence))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values) if b - a > 1e-3]
    return float(max(middles, key=lambda tau: len(set(first_depth(confidence >= tau)))))


def test_each_sample_leaves_at_its_own_depth_with_the_logits_of_that_depth(setup):
    model, params, images, logits, confidence = setup
    tau = telling_tau(confidence)
    out = ap.early_exit(model, params, images, tau)
    want = first_depth(confidence >= tau)
    assert len(set(want)) > 2
    assert out.depth.tolist() == want.tolist()
    np.testing.assert_allclose(out.logits, logits[want - 1, np.arange(8)], **CLOSE)


def test_the_batch_leaves_together_by_its_mean(setup):
    model, params, images, logits, confidence = setup
    tau = telling_tau(confidence.mean(axis=1, keepdims=True)[1:])
    out = ap.early_exit(model, params, images, tau, per_sample=False)
    want = first_depth(confidence.mean(axis=1, keepdims=True) >= tau)[0]
    assert out.depth.tolist() == [want] * 8
    np.testing.assert_allclose(out.logits, logits[want - 1], **CLOSE)


def test_tau_zero_leaves_at_once_and_tau_one_never_nor_in_a_sub_network(setup):
    model, params, images, logits, _ = setup
    assert set(ap.early_exit(model, params, images, 0.0).depth.tolist()) == {1}
    out = ap.early_exit(model, params, images, 1.0)
    assert set(out.depth.tolist()) == {5}
    np.testing.assert_allclose(out.logits, logits[-1], **CLOSE)
    sub_network = dict(num_tokens=8, width=8, token_granularities=(3, 16))
    out = ap.early_exit(model, params, images, 1.0, **sub_network)
    want = run(model, params, images, **sub_network).logits
    np.testing.assert_allclose(out.logits, want, **CLOSE)
    assert np.abs(want - logits[-1]).max() > 1e-3


def test_a_sample_that_is_not_finite_never_leaves_early(setup):
    model, params, images, _, _ = setup
    images = images.copy()
    images[3] = np.nan
    out = ap.early_exit(model, params, images, 0.0)
    assert out.depth.tolist() == [1, 1, 1, 5, 1, 1, 1, 1]
    assert set(ap.early_exit(model, params, images, 0.0, per_sample=False).depth.tolist()) == {5}


def test_the_loop_really_stops(setup, monkeypatch):
    model, params, images, _, confidence = setup
    model = model.clone(unroll=5)  # another program, so that nothing cached is run
    blocks_run = []

    class CountedBlock(stepper.Block):
        def __call__(self, *arguments):
            jax.debug.callback(lambda: blocks_run.append(1))
            return super().__call__(*arguments)

    monkeypatch.setattr(stepper, "Block", CountedBlock)
    for tau in (0.0, telling_tau(confidence), 1.0):
        blocks_run.clear()
        out = ap.early_exit(model, params, images, tau)
        jax.effects_barrier()
        assert len(blocks_run) == out.depth.max()


def test_a_new_tau_does_not_compile_anew(setup):
    model, params, images, _, _ = setup
    ap.early_exit(model, params, images, 0.5)
    compiled = module._early_exit._cache_size()
    for tau in (0.1, 0.9, np.float32(0.3)):
        ap.early_exit(model, params, images, tau)
    inside = jax.jit(lambda p, x, tau: ap.early_exit(model, p, x, tau))(params, images, 0.5)
    want = ap.early_exit(model, params, images, 0.5)
    np.testing.assert_array_equal(inside.depth, want.depth)
    assert module._early_exit._cache_size() - compiled <= 1  # a NumPy scalar is another type
