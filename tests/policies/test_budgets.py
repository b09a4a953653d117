"""What a budget may be."""

import numpy as np
import pytest

from adaperceiver_jax.policies.budgets import Budgets, Policy


def test_fixed_budgets_are_the_same_for_every_image():
    budgets = Budgets.fixed(3, 16, 24, 5, 0.5)
    assert len(budgets) == 3
    assert budgets.num_tokens.tolist() == [16] * 3
    assert budgets.width.tolist() == [24] * 3
    assert budgets.depth.tolist() == [5] * 3
    assert budgets.tau.dtype == np.float32
    assert budgets.tau.tolist() == [0.5] * 3
    assert Budgets.fixed(3, 16, 24, 5).tau is None


def test_lists_and_scalars_of_other_types_become_arrays():
    budgets = Budgets([1, 2], [8, 8], [3, 1], [0.25, 1])
    assert all(
        isinstance(getattr(budgets, name), np.ndarray)
        for name in ("num_tokens", "width", "depth", "tau")
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([[4]], [8], [3]), r"num_tokens of shape \(1, 1\): must be \(B,\)"),
        (([4, 4], [8], [3, 3]), r"width of shape \(1,\): must be \(2,\), as num_tokens"),
        (([4, 4], [8, 8], [3.0, 3.0]), "depth of dtype float64: must be integers"),
        (([4, 4], [8, 8], [3, 3], [0.5]), r"tau of shape \(1,\): must be \(2,\)"),
        (([4, 4], [8, 8], [3, 3], [0.5, 1.5]), "tau=1.5 of image 1: must be a probability"),
        (([4, 4], [8, 8], [3, 3], [np.nan, 0.5]), "tau=nan of image 0: must be a probability"),
    ],
)
def test_bad_budgets_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Budgets(*fields)


def test_calling_a_policy_chooses_from_images_alone():
    class Asked(Policy):
        def choose(self, images, embedded=None):
            assert embedded is None
            return Budgets.fixed(len(images), 4, 8, 1)

    assert len(Asked()(np.zeros((2, 4, 4, 3)))) == 2
    with pytest.raises(NotImplementedError, match=r"Policy\.choose: a policy must define it"):
        Policy()(np.zeros((2, 4, 4, 3)))
