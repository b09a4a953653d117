"""What fixed sub-networks get at any cost, and what a policy gets above it."""

import numpy as np
import pytest

from adaperceiver_jax.policies.mix import Mix

RIGHT = np.array(
    [
        [0, 1, 1, 1, 1, 1, 1, 0],  # 6 GFLOPs, 6/8
        [1, 1, 1, 1, 1, 0, 0, 0],  # 2, 5/8
        [1, 0, 0, 0, 0, 0, 0, 0],  # 1, 1/8
        [1, 1, 0, 0, 0, 0, 0, 0],  # 1.5, 2/8: below the line from 1 to 2
        [1, 1, 1, 1, 0, 0, 0, 0],  # 4, 4/8: less than a cheaper one gets
        [0, 1, 1, 1, 1, 1, 1, 0],  # 7, 6/8: no better than at 6
    ],
    bool,
)
MIX = Mix(RIGHT, np.array([6.0, 2.0, 1.0, 1.5, 4.0, 7.0]))


@pytest.mark.parametrize(
    ("gflops", "weights"),
    [
        (1.0, [0, 0, 1, 0, 0, 0]),
        (1.25, [0, 0.25, 0.75, 0, 0, 0]),
        (1.5, [0, 0.5, 0.5, 0, 0, 0]),
        (2.0, [0, 1, 0, 0, 0, 0]),
        (4.0, [0.5, 0.5, 0, 0, 0, 0]),
        (6.0, [1, 0, 0, 0, 0, 0]),
        (9.0, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_the_most_accurate_mix_that_costs_no_more(gflops, weights):
    np.testing.assert_allclose(MIX.at(gflops), weights @ RIGHT)


def test_no_mix_is_cheaper_than_all():
    assert MIX.at(0.99) is None
    assert MIX.gain(RIGHT[0], 0.99) is None


def test_of_equal_costs_the_more_accurate():
    mix = Mix(RIGHT[[2, 1, 0]], np.array([2.0, 2.0, 3.0]))
    np.testing.assert_allclose(mix.at(2.0), RIGHT[1])


def test_one_sub_network_is_its_own_mix():
    mix = Mix(RIGHT[:1], np.array([6.0]))
    assert mix.at(5.9) is None
    for gflops in (6.0, 7.0):
        np.testing.assert_allclose(mix.at(gflops), RIGHT[0])


def test_of_three_on_a_line_the_middle_one_is_left_out():
    right = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], bool)  # 1/4, 2/4, 3/4
    mix = Mix(right, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(mix.at(2.0), [1, 0.5, 0.5, 0])


def test_the_best_of_a_grid_of_mixes():
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 101)
    grid = np.array([(a, b, 1 - a - b) for a in shares for b in shares if a + b <= 1])
    for _ in range(20):
        mix = Mix(rng.random((3, 40)) < rng.random((3, 1)), 1 + 4 * rng.random(3))
        for gflops in np.linspace(mix.gflops.min() + 0.2, 5, 4):
            allowed = grid[grid @ mix.gflops <= gflops]
            best = (allowed @ mix.right.mean(1)).max()
            assert best - 1e-9 <= mix.at(gflops).mean() < best + 0.03


def test_gain_is_taken_image_by_image():
    policy = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    gain, error = MIX.gain(policy, 4.0)
    each = [0.5, 0, 0, 0, 0, 0.5, -0.5, 0]  # less half of each of those of 2 and 6 GFLOPs
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


def test_a_corner_gains_nothing_over_the_mix():
    assert MIX.gain(RIGHT[1], 2.0) == (0.0, 0.0)


def test_one_image_has_no_standard_error():
    gain, error = Mix(RIGHT[:, :1], MIX.gflops).gain(np.array([True]), 1.0)
    assert gain == 0
    assert np.isnan(error)
