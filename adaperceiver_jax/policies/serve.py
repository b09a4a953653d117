"""Serving by budget: each image runs its own sub-network, in full batches of static shapes."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import check_images, check_sub_network
from adaperceiver_jax.models.stepper import Stepper
from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.replay import Costs, costs

SIZES = 8
"""Number of sizes that batches have by default."""


@dataclasses.dataclass(frozen=True)
class Served:
    """Answers to N images, in their order."""

    logits: np.ndarray
    """(N, classes) float32"""
    num_tokens: np.ndarray
    """(N,)"""
    width: np.ndarray
    """(N,)"""
    depth: np.ndarray
    """(N,) blocks run until the image left"""
    gflops: np.ndarray
    """(N,) of each image's own sub-network, its exit tests and the policy"""
    computed_gflops: float
    """FLOPs of all that was run, with padding and blocks of images that had left."""


class Server:
    """Answers images with the sub-network that a policy chooses for each.

    Images of one token count and width share a batch. As soon as so many of it have left that the
    others fit a smaller batch, those that left are dropped, and the others wait at that depth for
    others to fill a batch with. Every shape is one of a few, so that a call compiles nothing that
    was compiled before: a program of reading a (token count, batch size), one of blocks a (token
    count, width, batch size), whatever the depths and thresholds.
    """

    def __init__(
        self,
        model: AdaPerceiver,
        params: Any,
        policy: Policy,
        *,
        batch_size: int = 64,
        batch_sizes: Sequence[int] | None = None,
    ) -> None:
        """A server of one model on one device.

        Args:
          batch_size: images a full batch.
          batch_sizes: what else a batch may hold; None is the eighths of batch_size. Fewer compile
            less and drop images later.
        """
        if not isinstance(model, AdaPerceiver):
            raise ValueError(f"model={type(model).__name__}: must be an AdaPerceiver")
        if model.config.num_classes is None:
            raise ValueError("num_classes=None: serving needs a model with class logits")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: must be an integer, at least 1")
        if not isinstance(policy, Policy):
            raise ValueError(f"policy={policy!r}: must be a Policy, ap.policies.Baseline say")
        if batch_sizes is None:
            batch_sizes = [-(-batch_size * k // SIZES) for k in range(1, SIZES)]
        if any(not 1 <= size <= batch_size for size in batch_sizes):
            raise ValueError(f"batch_sizes={tuple(batch_sizes)}: must be in 1..{batch_size}")
        self.model = model
        self.params = jax.device_put(params)
        self.policy = policy
        self.batch_size = batch_size
        self.batch_sizes = sorted({*batch_sizes, batch_size})

    def __call__(self, images: ArrayLike | Iterable[ArrayLike]) -> Served:
        """Serves images (N, H, W, C), normalised, or a stream of such arrays of any N."""
        call = _Call(self)
        for chunk in _chunks(images, self.batch_size, self.model):
            call.admit(chunk)
        call.finish()
        return call.served()


class _Call:
    """The images of one call on their way through."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.queues = collections.defaultdict[tuple[int, int, int], Queue](
            lambda: Queue(2 * server.batch_size)
        )
        """By depth, num_tokens and width; of depth 0, embedded images, of others latents."""
        self.folded: dict[int, Any] = {}
        self.budgets: list[Budgets] = []
        self.answers: list[tuple[int, int, np.ndarray]] = []
        """(index, depth, logits) in the order of leaving."""
        self.computed = 0.0
        self.image_size = (0, 0)
        self.admitted = 0

    def admit(self, images: np.ndarray) -> None:
        """Embeds a chunk, asks the policy, and runs the batches that are full."""
        server, count = self.server, len(images)
        self.image_size = images.shape[1:3]
        size = next(s for s in server.batch_sizes if s >= count)
        padded = images
        if size > count:
            padded = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        embedded = embed(server.model, server.params, padded)
        self.computed += size * (self._costs(1, 1).embed + server.policy.gflops * 1e9)
        padded = padded.view()
        padded.flags.writeable = False  # they may be the caller's own
        budgets = server.policy.choose(padded, embedded)  # of few sizes: compiled once each
        _check_budgets(budgets, self.admitted, size, server.model)
        budgets = budgets.first(count)
        tau = np.full(count, np.inf) if budgets.tau is None else budgets.tau
        groups: dict[tuple[int, int], list[int]] = {}
        for i, group in enumerate(zip(budgets.num_tokens, budgets.width, strict=True)):
            groups.setdefault((int(group[0]), int(group[1])), []).append(i)
        for (num_tokens, width), rows in groups.items():
            waiting = [
                Waiting(self.admitted + i, int(budgets.depth[i]), float(tau[i])) for i in rows
            ]
            self.queues[0, num_tokens, width].put(embedded, rows, waiting)
        self.budgets.append(budgets)
        self.admitted += count
        while full := self._full():
            self._run(max(full))

    def finish(self) -> None:
        """Runs what is left, the shallowest first: those behind it may still fill a batch."""
        while self.queues:
            self._run(max(self._full(), default=min(self.queues)))

    def _full(self) -> list[tuple[int, int, int]]:
        """Queues that fill a batch."""
        return [key for key, q in self.queues.items() if len(q) >= self.server.batch_size]

    def _run(self, key: tuple[int, int, int]) -> None:
        """Runs the first images of a queue until they fit a smaller batch."""
        server, (depth, num_tokens, width) = self.server, key
        cost = self._costs(num_tokens, width)
        count = min(len(self.queues[key]), server.batch_size)
        size = next(s for s in server.batch_sizes if s >= count)
        states, waiting = self.queues[key].take(count, size)
        if not len(self.queues[key]):
            del self.queues[key]
        if depth == 0:
            states, folded = read(server.model, num_tokens, server.params, states)
            self.folded[num_tokens] = folded
            self.computed += size * cost.read + cost.once
        ceiling, tau = np.zeros(size, np.int32), np.full(size, np.inf, np.float32)
        ceiling[:count] = [w.ceiling for w in waiting]
        tau[:count] = [w.tau for w in waiting]
        segment = run_segment(
            server.model,
            num_tokens,
            width,
            server.params,
            states,
            self.folded[num_tokens],
            np.int32(depth),
            np.int32(max((s for s in server.batch_sizes if s < count), default=0)),
            ceiling,
            tau,
        )
        logits, left_at, end, tests = jax.device_get(segment[1:])
        self.computed += size * ((int(end) - depth) * cost.block + int(tests) * cost.test)
        for i in np.flatnonzero(left_at):
            self.answers.append((waiting[i].image, int(left_at[i]), logits[i]))
        rows = [i for i in range(count) if not left_at[i]]
        if rows:
            queue = self.queues[int(end), num_tokens, width]
            queue.put(segment.latents, rows, [waiting[i] for i in rows])

    def served(self) -> Served:
        """The answers, when all images have left."""
        index, depth, logits = zip(*sorted(self.answers, key=lambda a: a[0]), strict=True)
        depths = np.array(depth)
        num_tokens, width = (
            np.concatenate([getattr(b, name) for b in self.budgets])
            for name in ("num_tokens", "width")
        )
        tests = np.concatenate([np.full(len(b), b.tau is not None) for b in self.budgets])
        tests = np.where(tests, depths, 1)
        own = np.empty(len(index))
        for i, (n, w) in enumerate(zip(num_tokens.tolist(), width.tolist(), strict=True)):
            own[i] = self._costs(n, w).image(depths[i], tests[i], self.server.batch_size)
        return Served(
            np.stack(logits),
            num_tokens,
            width,
            depths,
            own / 1e9 + self.server.policy.gflops,
            self.computed / 1e9,
        )

    def _costs(self, num_tokens: int, width: int) -> Costs:
        model = self.server.model
        return costs(model.config, num_tokens, width, self.image_size, model.attention)


def _chunks(
    images: ArrayLike | Iterable[ArrayLike], size: int, model: AdaPerceiver
) -> Iterator[np.ndarray]:
    """The images again, `size` at a time, the last fewer."""
    c = model.config
    stream: Any = images
    if hasattr(images, "shape") or not isinstance(images, Iterable):
        stream = [images]
    held = None
    total = 0
    for array in stream:
        check_images(array, c.patch_size, c.in_channels)
        if held is not None and array.shape[1:] != held.shape[1:]:
            raise ValueError(
                f"images of shape {array.shape} after images of {held.shape[1:]}: one call takes "
                "one size; serve each size by a call of its own"
            )
        held = np.asarray(array) if held is None else np.concatenate([held, array])
        total += len(array)
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if not total:
        raise ValueError("images: none were given; a call needs at least one")
    if held is not None and len(held):
        yield held


def _check_budgets(budgets: Budgets, first: int, count: int, model: AdaPerceiver) -> None:
    """Raises ValueError, naming the image, unless each of `count` images has a sub-network."""
    if len(budgets) != count:
        raise ValueError(f"policy: chose {len(budgets)} budgets for {count} images")
    chosen = np.stack([budgets.num_tokens, budgets.width, budgets.depth], axis=1)
    for sub_network in np.unique(chosen, axis=0):
        try:
            check_sub_network(model.config, *sub_network.tolist())
        except ValueError as error:
            index = first + np.flatnonzero((chosen == sub_network).all(axis=1))[0]
            raise ValueError(f"budget of image {index}: {error}") from None


class Waiting(NamedTuple):
    """An image on its way, as the host knows it."""

    image: int
    """Number of the image among those of the call."""
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
        """Row of the states for each image that waits."""
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


class Segment(NamedTuple):
    latents: jax.Array
    """(B, N, D)"""
    logits: jax.Array
    """(B, classes), of images that left"""
    left_at: jax.Array
    """(B,) the depth at which an image left; 0 if it did not"""
    depth: jax.Array
    """Depth at the end of the segment."""
    tests: jax.Array
    """Number of times that all images were tested."""


@functools.partial(jax.jit, static_argnums=0)
def embed(model, params, images):
    return model.apply({"params": params}, images, method="embed_once")


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(model, num_tokens, params, embedded):
    """Embedded images -> latents (B, N, D), and the folded query of every test of them."""
    stepper = Stepper(model, params, num_tokens)
    return stepper.begin(embedded), stepper.folded


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_segment(model, num_tokens, width, params, latents, folded, first, least, ceiling, tau):
    """Blocks from `first` on, until no more than `least` images are left; an image of ceiling 0 is
    padding."""
    stepper = Stepper(model, params, num_tokens, width, folded=folded)

    def here(left_at):
        return (left_at == 0) & (ceiling > 0)

    def running(state):
        return here(state.left_at).sum() > least

    def to_next_test(state):
        """Blocks, up to a depth where some image is tested."""

        def untested(carry):
            _, depth = carry
            may_leave = here(state.left_at) & ((depth >= ceiling) | (tau <= 1))
            return (depth == state.depth) | ~may_leave.any()

        def run_block(carry):
            z, depth = carry
            return stepper.block(z, depth), depth + 1

        return jax.lax.while_loop(untested, run_block, (state.latents, state.depth))

    def step(state):
        z, depth = to_next_test(state)
        now = stepper.write(z)
        sure = jax.nn.softmax(now).max(axis=-1) >= tau
        leaves = here(state.left_at) & (sure | (depth >= ceiling))
        return Segment(
            z,
            jnp.where(leaves[:, None], now, state.logits),
            jnp.where(leaves, depth, state.left_at),
            depth,
            state.tests + 1,
        )

    batch = len(latents)
    return jax.lax.while_loop(
        running,
        step,
        Segment(
            latents,
            jnp.zeros((batch, model.config.num_classes), jnp.float32),
            jnp.zeros(batch, jnp.int32),
            jnp.asarray(first, jnp.int32),
            jnp.int32(0),
        ),
    )
