"""Sweeps of classifiers: how right every sub-network is, and a folder from which one resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaperceiver_jax.evaluate.costs import Cost
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.outcomes import (
    Grid,
    Outcomes,
    Scores,
    digest,
    grid_scores,
    join,
    make_grid,
)
from adaperceiver_jax.evaluate.points import AXES, Point, kind_of_tokens
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig

ABOUT = "sweep.json"
_SCORES = tuple(field.name for field in dataclasses.fields(Scores))

LabelledBatches = Iterable[tuple[Any, Any]]
"""Normalised images (B, H, W, C) and labels (B,); all of one size compile once. A label below 0
marks an image that does not count."""


def sweep(
    model: AdaPerceiver,
    params: Any,
    batches: LabelledBatches,
    tokens: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
) -> list[Point]:
    """Every sub-network of a grid (see `make_grid`) over labelled images."""
    grid = make_grid(model.config, tokens, widths, depths)
    parts = list(collect(model, params, batches, grid))
    if not parts:
        raise ValueError("batches: held no images")
    return points(model.config, join(parts))


def collect(
    model: AdaPerceiver, params: Any, batches: LabelledBatches, grid: Grid
) -> Iterator[Outcomes]:
    """The outcomes of each batch."""

    @jax.jit
    def compute(params: Any, images: jax.Array, labels: jax.Array) -> Scores:
        return grid_scores(model, params, images, labels, grid)

    for images, labels in batches:
        scores = jax.device_get(compute(params, images, labels))
        counts = np.asarray(labels) >= 0
        kept = jax.tree.map(lambda x, counts=counts: x[..., counts], scores)
        yield Outcomes(grid, kept, digest(jax.device_get(images)[counts]))


def points(
    config: AdaPerceiverConfig,
    outcomes: Outcomes,
    costs: Mapping[tuple[int, int, int], Cost] | None = None,
) -> list[Point]:
    """A point per sub-network, with what was measured of it."""
    top1, top5 = (getattr(outcomes.scores, name).mean(-1) for name in ("right", "top5"))
    found = []
    for sub_network in outcomes.grid.sub_networks():
        at = outcomes.index(*sub_network)
        cost = (costs or {}).get(sub_network)
        values = dict(zip(AXES, sub_network, strict=True)) | (vars(cost) if cost else {})
        found.append(
            Point(
                **values,
                accuracy=float(top1[at]),
                gflops=flops(config, *sub_network).total / 1e9,
                top5=float(top5[at]),
                tokens_are=kind_of_tokens(sub_network[0], config.token_granularities),
            )
        )
    return found


class SweepFolder:
    """A sweep's folder: a description, the outcomes of each batch, measured costs.

    Every file is written whole or not at all, so a sweep that was killed goes on from the batch or
    measurement it was in.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """about: what the sweep is of, JSON values; ValueError if the folder holds another's.
        None opens a folder that is there."""
        self.path = path
        file = path / ABOUT
        if file.exists():
            self.about: dict[str, Any] = json.loads(file.read_text())
            now = self.about if about is None else json.loads(json.dumps(about))
            for name in self.about.keys() | now.keys():
                if self.about.get(name) != now.get(name):
                    raise ValueError(
                        f"{path}: holds the sweep of another {name} ({self.about.get(name)}; now "
                        f"{now.get(name)}); name another --out, or move the folder away"
                    )
        elif about is None:
            raise ValueError(f"{path}: holds no sweep ({ABOUT} is not there)")
        elif path.exists() and any(path.iterdir()):
            raise ValueError(f"{path}: is there already and holds no sweep; name another --out")
        else:
            path.mkdir(parents=True, exist_ok=True)
            self.about = json.loads(json.dumps(about))
            _write(file, lambda to: to.write_text(json.dumps(about, indent=2)))
        self.grid = Grid(*(tuple(self.about[name]) for name in ("tokens", "widths", "depths")))

    @property
    def batches(self) -> int:
        """Number of batches that are done."""
        done = 0
        while self._batch(done).exists():
            done += 1
        return done

    def add(self, outcomes: Outcomes) -> None:
        """Keeps the outcomes of the next batch."""
        arrays = {name: getattr(outcomes.scores, name) for name in _SCORES}

        def write(to: Path) -> None:
            with to.open("wb") as file:  # a name would get another ending
                np.savez(file, digests=outcomes.digests, **arrays)

        _write(self._batch(self.batches), write)

    def outcomes(self) -> Outcomes:
        """The outcomes of all batches."""
        parts = []
        for i in range(self.batches):
            with np.load(self._batch(i)) as arrays:
                scores = Scores(*(arrays[name] for name in _SCORES))
                parts.append(Outcomes(self.grid, scores, arrays["digests"]))
        if not parts:
            raise ValueError(f"{self.path}: holds no outcomes yet; run the sweep to its end")
        return join(parts)

    def add_costs(self, num_tokens: int, width: int, costs: Sequence[Cost]) -> None:
        """Keeps the costs of a token count and width at all depths."""
        text = json.dumps([vars(cost) for cost in costs], indent=1)
        _write(self._costs(num_tokens, width), lambda to: to.write_text(text))

    def has_costs(self, num_tokens: int, width: int) -> bool:
        return self._costs(num_tokens, width).exists()

    def costs(self) -> dict[tuple[int, int, int], Cost]:
        """All costs, by sub-network."""
        files = (self._costs(t, w) for t in self.grid.tokens for w in self.grid.widths)
        rows = (row for file in files if file.exists() for row in json.loads(file.read_text()))
        found = (Cost(**row) for row in rows)
        return {(cost.num_tokens, cost.width, cost.depth): cost for cost in found}

    def _batch(self, number: int) -> Path:
        return self.path / f"batch_{number:06d}.npz"

    def _costs(self, num_tokens: int, width: int) -> Path:
        return self.path / f"costs_{num_tokens}_{width}.json"


def weights_digest(params: Any) -> str:
    """A digest of weights and their names."""
    total = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return total.hexdigest()


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written next to its place, and moves it there."""
    beside = path.with_name(f".{path.name}")
    write(beside)
    beside.rename(path)
