"""Metrics of class and depth maps against scikit-learn and plain NumPy."""

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion

from adaperceiver_jax.evaluate.depth_metrics import (
    depth_errors,
    depth_scores,
    eigen_crop,
    eigen_crops,
)
from adaperceiver_jax.evaluate.own_size import own_classes, own_depth
from adaperceiver_jax.evaluate.segmentation_metrics import confusion_matrix, segmentation_scores
from tests.models.test_dense import bilinear

CLASSES = 7


def label_maps(seed: int, shape=(5, 12, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true; a fifth is ignored, class 5 is never labelled, class 6 nowhere."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, CLASSES - 1, shape)
    labels = rng.integers(0, CLASSES - 2, shape)
    labels = np.where(rng.random(shape) < 0.3, predicted % (CLASSES - 2), labels)
    return predicted, np.where(rng.random(shape) < 0.2, 255, labels).astype(np.uint8)


def test_confusion_is_scikit_learns():
    predicted, labels = label_maps(0)
    ours = np.asarray(confusion_matrix(predicted, labels, CLASSES))
    assert ours.dtype == np.int32
    for one, p, true in zip(ours, predicted, labels, strict=True):
        counted = true != 255
        want = sklearn_confusion(true[counted], p[counted], labels=range(CLASSES))
        np.testing.assert_array_equal(one, want)


def test_scores_are_those_of_the_definition():
    predicted, labels = label_maps(1)
    scores = segmentation_scores(np.asarray(confusion_matrix(predicted, labels, CLASSES)).sum(0))
    counted = labels != 255
    iou, accuracy = [], []
    for k in range(CLASSES):
        true, said = (labels == k) & counted, (predicted == k) & counted
        if (true | said).any():
            iou.append((true & said).sum() / (true | said).sum())
        if true.any():
            accuracy.append((true & said).sum() / true.sum())
    assert (len(iou), len(accuracy)) == (6, 5)
    assert scores["miou"] == pytest.approx(np.mean(iou), rel=1e-12)
    assert scores["mean_accuracy"] == pytest.approx(np.mean(accuracy), rel=1e-12)
    assert scores["accuracy"] == pytest.approx((predicted == labels)[counted].mean(), rel=1e-12)


def test_counts_beyond_32_bits_are_exact():
    counts = np.array([[2**40 + 1, 0], [3, 2**41]], np.int64)
    scores = segmentation_scores(counts)
    assert scores["accuracy"] == (2**40 + 1 + 2**41) / (2**40 + 2**41 + 4)


def test_maps_with_nothing_that_counts_are_refused_not_nan():
    labels = np.full((2, 4, 4), 255, np.uint8)
    counts = np.asarray(confusion_matrix(np.zeros((2, 4, 4), int), labels, CLASSES))
    assert not counts.any()
    with pytest.raises(ValueError, match="no pixel of these label maps counts: all are ignored"):
        segmentation_scores(counts.sum(0))
    depth = np.ones((2, 4, 4), np.float32)
    errors = depth_errors(depth, np.zeros_like(depth), np.zeros(depth.shape, bool))
    sums = {name: np.asarray(value).sum() for name, value in errors.items()}
    assert all(np.isfinite(value) and not value for value in sums.values())
    with pytest.raises(ValueError, match="no pixel of these depth maps counts"):
        depth_scores(sums)


def depth_maps(seed: int, shape=(4, 11, 13)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted, true and valid; the last image has no valid pixel."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.5, 9.5, shape).astype(np.float32)
    predicted = (true * np.exp(0.4 * rng.standard_normal(shape))).astype(np.float32)
    valid = rng.random(shape) < 0.7
    valid[-1] = False
    return predicted, np.where(valid, true, 0), valid


def wanted(predicted, true, valid) -> dict[str, float]:
    each, squares = [], []
    for p, t, v in zip(predicted.astype(float), true.astype(float), valid, strict=True):
        p, t = p[v], t[v]
        if not t.size:
            continue
        ratio = np.maximum(p / t, t / p)
        each.append(
            {
                "rmse": np.sqrt(((p - t) ** 2).mean()),
                "abs_rel": (np.abs(p - t) / t).mean(),
                "log10": np.abs(np.log10(p) - np.log10(t)).mean(),
                **{f"delta{k}": (ratio < 1.25**k).mean() for k in (1, 2, 3)},
            }
        )
        squares.append((p - t) ** 2)
    means = {name: np.mean([one[name] for one in each]) for name in each[0]}
    return {**means, "rmse_pixels": np.sqrt(np.concatenate(squares).mean())}


def test_depth_errors_are_those_of_the_definition():
    maps = depth_maps(0)
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(), depth_errors(*maps))
    assert depth_scores(sums) == pytest.approx(wanted(*maps), rel=1e-5)
    named = depth_scores(sums, eigen=True)
    assert set(named) == {f"eigen_{name}" for name in depth_scores(sums)}


def test_the_eigen_crop():
    inside = eigen_crop(480, 640)
    rows, columns = np.nonzero(inside)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert inside.sum() == 426 * 560
    sizes = np.array([(480, 640), (448, 602), (100, 90), (33, 640)])
    several = np.asarray(eigen_crops(sizes, (480, 640)))
    for one, (height, width) in zip(several, sizes, strict=True):
        np.testing.assert_array_equal(one[:height, :width], eigen_crop(height, width))


SIZES = np.array([(9, 31), (16, 40), (32, 21)])


def test_predictions_at_the_size_of_each_map():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3, 4, 6, CLASSES)).astype(np.float32)
    classes = np.asarray(own_classes(scores, SIZES, (32, 48)))
    depths = np.asarray(own_depth(scores[..., :1], SIZES, (32, 48)))
    for i, (height, width) in enumerate(SIZES):
        resized = bilinear(scores[i], height, width)
        first, second = np.sort(resized, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
        clear = first - second > 1e-4  # else rounding decides
        assert clear.mean() > 0.99
        same = classes[i, :height, :width] == resized.argmax(-1)
        assert same[clear].all()
        np.testing.assert_allclose(depths[i, :height, :width], resized[..., 0], atol=1e-5)
