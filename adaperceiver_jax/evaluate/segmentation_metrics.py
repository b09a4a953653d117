"""How right class maps are: a confusion matrix that adds up exactly, and what is read off it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

IGNORE = 255


def confusion_matrix(
    predicted: jax.Array, labels: jax.Array, num_classes: int, ignore: int = IGNORE
) -> jax.Array:
    """Counts of pixels by true (rows) and predicted (columns) class, an image each.

    Class maps (B, H, W), both of whole numbers -> (B, classes, classes) int32. Pixels labelled
    `ignore` are left out. Whole numbers add up exactly in any order, over devices and processes.
    """
    labels = labels.astype(jnp.int32)
    cell = labels * num_classes + predicted.astype(jnp.int32)
    cell = jnp.where(labels == ignore, num_classes**2, cell)

    def count(cells: jax.Array) -> jax.Array:
        counts = jnp.bincount(cells.reshape(-1), length=num_classes**2 + 1)[:-1]
        return counts.reshape(num_classes, num_classes).astype(jnp.int32)

    return jax.vmap(count)(cell)


def segmentation_scores(confusion: np.ndarray) -> dict[str, float]:
    """'miou', 'mean_accuracy' and 'accuracy' (of pixels) of a whole set's counts (C, C).

    The mean IoU is over the classes that are labelled or predicted anywhere, the mean accuracy over
    those that are labelled. ValueError if no pixel is labelled.
    """
    counts = np.asarray(confusion, np.int64)
    if not counts.sum():
        raise ValueError("no pixel of these label maps counts: all are ignored")
    right, true, said = np.diag(counts), counts.sum(1), counts.sum(0)
    union = true + said - right
    return {
        "miou": float((right[union > 0] / union[union > 0]).mean()),
        "mean_accuracy": float((right[true > 0] / true[true > 0]).mean()),
        "accuracy": float(right.sum() / counts.sum()),
    }
