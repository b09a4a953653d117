"""The interface of a task; the trainer knows none by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

Batch = dict[str, jax.Array]
"""Arrays with a leading batch axis, as the data source names them."""
Metrics = dict[str, jax.Array]
Sums = Mapping[str, np.ndarray]
COUNT = "count"
"""The sum that says over how many images the others are."""
SubNetwork = tuple[int, int, int]
"""(num_tokens, width, depth)"""


class Task(Protocol):
    """One objective: how a batch becomes a loss, and how a model is evaluated."""

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""

    @property
    def metric(self) -> str:
        """The metric of `summarise` by which the best checkpoint is kept; '-NAME': the lowest."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arrays of a sample that it looks at."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the data set must have."""

    def init_params(self, key: jax.Array) -> Any:
        """Fresh parameters of the model."""

    def constants(self) -> dict[str, Any]:
        """Arrays the loss needs and nobody trains, the teacher's parameters say; {} for none."""

    def memory(self) -> dict[str, jax.Array]:
        """Initial value of the state that the task carries across steps; {} if none. The loss finds
        it among the constants, by the same names."""

    def remember(self, memory: dict[str, jax.Array], metrics: Metrics) -> dict[str, jax.Array]:
        """The next value of that state, from this step's value and metrics."""

    def draw(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        """A batch, a step's key and its number, from 0 -> (samples, shared).

        All randomness of the step but dropout happens here, on the whole batch, so that cutting
        it into parts changes nothing. `samples` has a leading batch axis throughout, `shared`
        holds what all samples have in common.
        """

    def loss(
        self, params: Any, constants: Any, samples: Any, shared: Any, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The mean loss over the samples, and metrics: the parts it is the sum of, and whatever
        else of the samples a row should show or `remember` needs, as a mean over them."""

    def sub_networks(self) -> tuple[SubNetwork | None, ...]:
        """The sub-networks that are evaluated; first the whole model (None: it has no others)."""

    def evaluate(
        self, params: Any, constants: Any, batch: Batch, sub_network: SubNetwork | None
    ) -> dict[str, jax.Array]:
        """Values that are added up over the validation images, by name: an entry per sample,
        (B, ...). Whole numbers add up exactly."""

    def summarise(self, sums: Sums) -> dict[str, float]:
        """The metrics, from the sums of what `evaluate` gave over all images, and their COUNT."""

    def train_flops(self, trained: Any) -> float:
        """FLOPs per image of a step that trains these parameters (or shapes): forward, and the part
        of the backward that they need."""


def means(sums: Sums) -> dict[str, float]:
    """Means over all images, of values with one number per image."""
    count = float(sums[COUNT])
    return {name: float(value) / count for name, value in sums.items() if name != COUNT}
