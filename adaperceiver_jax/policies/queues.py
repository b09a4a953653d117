"""Images that wait for a full batch: their states stay on the device, in arrays of one shape."""

from __future__ import annotations

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Waiting(NamedTuple):
    """What the host knows of an image on its way."""

    image: int
    """Its number among the images of the call."""
    ceiling: int
    """Blocks at most."""
    tau: float
    """Infinite where the image may not leave early."""


class Queue:
    """First in, first out, `capacity` images at most.

    States that come to an empty queue stay in the array they came in; when others join them it
    grows to `capacity` rows, and theirs are written into free ones.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting: collections.deque[Waiting] = collections.deque()
        self.rows: collections.deque[int] = collections.deque()
        """Where in the states each of those waiting is."""
        self.states: Any = None

    def __len__(self) -> int:
        return len(self.waiting)

    def put(self, states: Any, rows: list[int], waiting: list[Waiting]) -> None:
        """Appends these rows of states, arrays (B, ...) of B < capacity, an image each."""
        if not self.waiting:
            self.states, self.rows = states, collections.deque(rows)
        else:
            if _rows(self.states) < self.capacity:
                self.states = _grow(self.states, self.capacity)
            free = [row for row in range(self.capacity) if row not in self.rows][: len(rows)]
            places = np.full(_rows(states), self.capacity)  # beyond the end: not written
            places[rows] = free
            self.states = _put(self.states, states, places)
            self.rows.extend(free)
        self.waiting.extend(waiting)

    def take(self, count: int, size: int) -> tuple[Any, list[Waiting]]:
        """The `count` first images, and their states, arrays (size, ...), the last repeated."""
        rows = np.array([self.rows.popleft() for _ in range(count)])
        states = _take(self.states, rows[np.minimum(np.arange(size), count - 1)])
        return states, [self.waiting.popleft() for _ in range(count)]


def _rows(states: Any) -> int:
    return len(jax.tree.leaves(states)[0])


@functools.partial(jax.jit, static_argnums=1)
def _grow(states, capacity):
    return jax.tree.map(
        lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype).at[: len(x)].set(x), states
    )


@functools.partial(jax.jit, donate_argnums=0)
def _put(states, rows, places):
    return jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), states, rows)


@jax.jit
def _take(states, places):
    return jax.tree.map(lambda x: x[places], states)
