"""What one budget for all gets at any cost, and what a policy gets above it."""

import numpy as np
import pytest

from adaperceiver_jax.policies.mix import Mix

RIGHT = np.array(
    [
        [1, 0, 0, 0, 0, 0, 0, 0],  # 1 GFLOP, 1/8
        [1, 1, 1, 1, 1, 0, 0, 0],  # 2, 5/8
        [1, 1, 1, 1, 0, 0, 0, 0],  # 4, 4/8: never worth its cost
        [0, 1, 1, 1, 1, 1, 1, 0],  # 6, 6/8
    ],
    bool,
)
MIX = Mix(RIGHT, np.array([1.0, 2.0, 4.0, 6.0]))


@pytest.mark.parametrize(
    ("gflops", "weights"),
    [
        (0.5, [1, 0, 0, 0]),  # none is so cheap
        (1.0, [1, 0, 0, 0]),
        (1.25, [0.75, 0.25, 0, 0]),
        (2.0, [0, 1, 0, 0]),
        (4.0, [0, 0.5, 0, 0.5]),
        (6.0, [0, 0, 0, 1]),
        (9.0, [0, 0, 0, 1]),
    ],
)
def test_the_most_accurate_mix_that_costs_no_more(gflops, weights):
    np.testing.assert_allclose(MIX.weights(gflops), weights)


def test_a_dear_baseline_that_is_worse_is_never_dealt_to():
    mix = Mix(RIGHT[[3, 1]], np.array([2.0, 6.0]))
    np.testing.assert_allclose(mix.weights(4.0), [1, 0])
    np.testing.assert_allclose(mix.weights(7.0), [1, 0])


def test_the_best_of_a_grid_of_mixes():
    rng = np.random.default_rng(0)
    mix = Mix(rng.random((3, 40)) < [[0.3], [0.6], [0.7]], np.array([1.0, 2.0, 5.0]))
    shares = np.linspace(0, 1, 201)
    grid = [(a, b, 1 - a - b) for a in shares for b in shares if a + b <= 1]
    for gflops in (1.3, 2.7, 4.0):
        allowed = [w for w in grid if np.dot(w, mix.gflops) <= gflops + 1e-9]
        found = mix.weights(gflops)
        assert found.sum() == pytest.approx(1)
        assert found @ mix.gflops <= gflops + 1e-9
        best = max(np.dot(w, mix.right.mean(1)) for w in allowed)
        assert best - 1e-9 <= found @ mix.right.mean(1) < best + 0.005


def test_gain_is_taken_image_by_image():
    policy = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    gain, error = MIX.gain(policy, 4.0)
    each = [0.5, 0, 0, 0, 0, 0.5, -0.5, 0]  # less half of each of the baselines of 2 and 6
    assert gain == pytest.approx(np.mean(each))
    assert error == pytest.approx(np.std(each, ddof=1) / np.sqrt(8))


def test_the_error_is_that_of_the_mean():
    """Over many draws of the images the gains spread as far as the error says."""
    rng = np.random.default_rng(1)
    gains, errors = [], []
    for _ in range(2000):
        hard = rng.random(300)  # the same image is hard for all
        mix = Mix(np.stack([hard < 0.6, hard < 0.8]), np.array([1.0, 2.0]))
        gain, error = mix.gain(hard < 0.75, 1.5)
        gains.append(gain)
        errors.append(error)
    assert np.mean(gains) == pytest.approx(0.05, abs=0.001)
    assert np.std(gains) == pytest.approx(np.mean(errors), rel=0.05)


def test_a_baseline_gains_nothing_over_itself():
    assert MIX.gain(RIGHT[1], 2.0) == (0.0, 0.0)
