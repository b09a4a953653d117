"""TPU topologies by name, and the places of a mesh's chips in their torus."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from tools.pod_report.chips import CHIPS, Chip

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
LAYOUTS = {2: FLAT, 3: DEEP}
"""Layouts of the slices that are named by their size, by axes of the torus."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a torus."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    """Devices such as `jax.devices()` gives, to compile for; nothing runs on them."""

    @property
    def hosts(self) -> int:
        if len(self.devices) <= self.chip.host:
            return 1
        return 1 + max(device.process_index for device in self.devices)


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """'v5e:16x16' -> the chip and (16, 16); ValueError says what there is."""
    kind, _, text = name.partition(":")
    if meant := _layout_of_slice(name):
        raise ValueError(f"topology {name!r}: is a slice; say {meant}, which is its layout")
    if kind not in CHIPS:
        raise ValueError(
            f"topology {name!r}: the chip must be one of {', '.join(CHIPS)}, as in v5e:16x16 or "
            "v4:4x4x4"
        )
    chip = CHIPS[kind]
    sides = _sides(text) if re.fullmatch(r"\d+(x\d+)*", text) else ()
    even = set(sides) == {1} or (all(side % 2 == 0 for side in sides[:2]) and all(sides))
    small = math.prod(sides) <= math.prod(chip.largest)
    if len(sides) != chip.torus or not even or not small or max(sides) > max(chip.largest):
        raise ValueError(
            f"topology {name!r}: {kind} takes {chip.torus} sides up to "
            f"{'x'.join(map(str, chip.largest))}, the first two even, or "
            f"{'x'.join('1' * chip.torus)}"
        )
    return chip, sides


def _layout_of_slice(name: str) -> str:
    """'v5e-256' or 'v5litepod-256' -> 'v5e:16x16'; '' for a name that is no slice's."""
    kind, _, size = name.replace("v5litepod-", "v5e-").partition("-")
    if kind not in CHIPS:
        return ""
    torus = CHIPS[kind].torus
    cores = 2 if torus == 3 else 1  # slices of these chips are named by cores
    sizes = {str(cores * math.prod(_sides(text))): text for text in LAYOUTS[torus]}
    return f"{kind}:{sizes[size]}" if size in sizes else ""


def _sides(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def find_topology(name: str) -> Topology:
    """The devices of 'v5e:16x16'; ValueError where there is no such, or no libtpu."""
    chip, sides = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for TPUs needs libtpu, which is not installed: pip install -e '.[tpu]'"
        )
    # libtpu would ask the cloud what machine this is, wait for an answer, and refuse to be loaded
    # by two processes, which a chip would need and a compiler does not.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    options = dict(chip.options)
    if math.prod(sides) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {name!r}: libtpu says: {error}") from error
    return Topology(name, chip, tuple(found.devices))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh over chips, by their numbers in it."""

    axes: tuple[tuple[str, int], ...]
    """Names and sizes: ('data', 16), ('fsdp', 16)."""
    coordinates: tuple[tuple[int, ...], ...]
    """Place of each chip in the torus."""

    @property
    def size(self) -> int:
        return len(self.coordinates)

    def links(self, group: Sequence[int], chip: Chip) -> float:
        """Links along the torus' axes that a group of chips spans: 1 for a ring, 1/2 for a row,
        which has no way back but the one it came."""
        return sum(links for _, links in self._spanned(group, chip))

    def way(self, group: Sequence[int], chip: Chip) -> float:
        """Links that exchanged data passes, in the mean, along the axis where that takes longest: a
        quarter of a ring, and twice that on a row, which has half of a ring's links."""
        return max((side / 4 / links for side, links in self._spanned(group, chip)), default=0.0)

    def _spanned(self, group: Sequence[int], chip: Chip) -> list[tuple[int, float]]:
        """(chips along it, links) of each axis that a group spans."""
        mine = [len(set(p)) for p in zip(*(self.coordinates[n] for n in group), strict=True)]
        return [
            (spanned, 1.0 if ring and spanned == side else 0.5)
            for ring, spanned, side in zip(self._rings(chip), mine, self._sides, strict=True)
            if spanned > 1
        ]

    @property
    def _sides(self) -> list[int]:
        return [len(set(places)) for places in zip(*self.coordinates, strict=True)]

    def _rings(self, chip: Chip) -> list[bool]:
        """True for each of the torus' axes that closes in a ring."""
        rings = [side % chip.ring == 0 for side in self._sides]
        return [all(rings)] * 3 if chip.torus == 3 else rings

    def crowd(self, pairs: Sequence[Sequence[int]], chip: Chip) -> int:
        """The most pairs of a permutation that share one direction of a link, when each goes the
        short way, axis by axis."""
        sides, rings = self._sides, self._rings(chip)
        taken: Counter[tuple[tuple[int, ...], int, int]] = Counter()
        for source, target in pairs:
            place = list(self.coordinates[source])
            for axis, (side, ring) in enumerate(zip(sides, rings, strict=True)):
                way = self.coordinates[target][axis] - place[axis]
                if ring and 2 * abs(way) > side:
                    way -= side if way > 0 else -side
                step = 1 if way > 0 else -1
                for _ in range(abs(way)):
                    taken[tuple(place), axis, step] += 1
                    place[axis] = (place[axis] + step) % side
        return max(taken.values(), default=0)


def layout(mesh: Mesh) -> Layout:
    """Places of a mesh over a topology's devices."""
    coordinates = tuple(tuple(device.coords) for device in mesh.devices.reshape(-1))
    return Layout(tuple(mesh.shape.items()), coordinates)
