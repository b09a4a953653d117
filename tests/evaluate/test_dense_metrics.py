"""Metrics of class and depth maps against scikit-learn and plain NumPy."""

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion

from adaperceiver_jax.evaluate.dense_metrics import (
    confusion_matrix,
    depth_errors,
    depth_scores,
    eigen_crop,
    eigen_crops,
    own_classes,
    own_depth,
    segmentation_scores,
)
from tests.models.test_dense import bilinear

CLASSES = 7


def test_classes_are_counted_as_by_scikit_learn_and_scored_by_definition():
    """A fifth is ignored, class 5 is never labelled, class 6 nowhere."""
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, CLASSES - 1, (5, 12, 17))
    labels = rng.integers(0, CLASSES - 2, predicted.shape)
    labels = np.where(rng.random(labels.shape) < 0.3, predicted % (CLASSES - 2), labels)
    counted = rng.random(labels.shape) >= 0.2
    counts = np.asarray(confusion_matrix(predicted, np.where(counted, labels, 255), CLASSES))
    assert counts.dtype == np.int32
    for one, p, true, c in zip(counts, predicted, labels, counted, strict=True):
        want = sklearn_confusion(true[c], p[c], labels=range(CLASSES))
        np.testing.assert_array_equal(one, want)
    predicted, labels = predicted[counted], labels[counted]
    iou, accuracy = [], []
    for k in range(CLASSES):
        true, said = labels == k, predicted == k
        if (true | said).any():
            iou.append((true & said).sum() / (true | said).sum())
        if true.any():
            accuracy.append((true & said).sum() / true.sum())
    assert (len(iou), len(accuracy)) == (6, 5)
    right = {"accuracy": (predicted == labels).mean()}
    want = {"miou": np.mean(iou), "mean_accuracy": np.mean(accuracy), **right}
    assert segmentation_scores(counts.sum(0)) == pytest.approx(want, rel=1e-12)
    large = segmentation_scores(np.array([[2**40 + 1, 0], [3, 2**41]], np.int64))  # exact, too
    assert large["accuracy"] == (2**40 + 1 + 2**41) / (2**40 + 2**41 + 4)


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


def test_depth_errors_are_those_of_the_definition():
    """The last image has no valid pixel."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.5, 9.5, (4, 11, 13)).astype(np.float32)
    predicted = (true * np.exp(0.4 * rng.standard_normal(true.shape))).astype(np.float32)
    valid = rng.random(true.shape) < 0.7
    valid[-1] = False
    errors = depth_errors(predicted, np.where(valid, true, 0), valid)
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(), errors)
    each = []
    for p, t, v in zip(predicted[:-1].astype(float), true.astype(float), valid, strict=False):
        p, t = p[v], t[v]
        ratio = np.maximum(p / t, t / p)
        relative, log = (np.abs(p - t) / t).mean(), np.abs(np.log10(p) - np.log10(t)).mean()
        root = np.sqrt(((p - t) ** 2).mean())
        each.append([root, relative, log, *((ratio < 1.25**k).mean() for k in (1, 2, 3))])
    names = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
    want = dict(zip(names, np.mean(each, axis=0), strict=True))
    want["rmse_pixels"] = np.sqrt(((predicted - true)[valid].astype(float) ** 2).mean())
    assert depth_scores(sums) == pytest.approx(want, rel=1e-5)
    assert set(depth_scores(sums, eigen=True)) == {f"eigen_{name}" for name in want}


def test_the_eigen_crop():
    inside = eigen_crop(480, 640)
    rows, columns = np.nonzero(inside)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert inside.sum() == 426 * 560
    sizes = np.array([(480, 640), (448, 602), (100, 90), (33, 640)])
    several = np.asarray(eigen_crops(sizes, (480, 640)))
    for one, (height, width) in zip(several, sizes, strict=True):
        np.testing.assert_array_equal(one[:height, :width], eigen_crop(height, width))


def test_predictions_at_the_size_of_each_map():
    sizes = np.array([(9, 31), (16, 40), (32, 21)])
    scores = np.random.default_rng(0).standard_normal((3, 4, 6, CLASSES)).astype(np.float32)
    classes = np.asarray(own_classes(scores, sizes, (32, 48)))
    depths = np.asarray(own_depth(scores[..., :1], sizes, (32, 48)))
    for i, (height, width) in enumerate(sizes):
        resized = bilinear(scores[i], height, width)
        first, second = np.sort(resized, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
        clear = first - second > 1e-4  # else rounding decides
        assert clear.mean() > 0.99
        same = classes[i, :height, :width] == resized.argmax(-1)
        assert same[clear].all()
        np.testing.assert_allclose(depths[i, :height, :width], resized[..., 0], atol=1e-5)
