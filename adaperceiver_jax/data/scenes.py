"""Scenes rendered from their index: images with class, class map and depth, no download."""

from __future__ import annotations

import dataclasses
from typing import Any, SupportsIndex

import numpy as np

from adaperceiver_jax.data.rendering import SHAPES, TEXTURES, Scene, Texture, Thing, reach, render

CLASSES: tuple[str, ...] = tuple(SHAPES)
SPLITS = ("train", "validation")
MIN_SIZE = 8
MAX_DISTRACTORS = 7
DIFFICULTY = 0.7
"""Unless said otherwise: of the hardest images."""


def _mix(a: list[float], b: list[float], share: float) -> list[float]:
    return [x + share * (y - x) for x, y in zip(a, b, strict=True)]


def _texture(
    draws: list[float], low: list[float], waves: tuple[float, float], contrast: float
) -> Texture:
    """A texture from 7 draws: `low` is one of its colours, the other one is drawn."""
    kind, frequency, angle, phase = draws[:4]
    return Texture(
        kind=int(kind * len(TEXTURES)),
        frequency=waves[0] + (waves[1] - waves[0]) * frequency,
        angle=np.pi * angle,
        phase=2 * np.pi * phase,
        low=tuple(low),
        high=tuple(_mix(low, draws[4:7], contrast)),
    )


def draw_scene(rng: np.random.Generator, difficulty: float = DIFFICULTY) -> Scene:
    """A scene; one draw, uniform up to `difficulty`, bounds all that makes an image hard."""
    label = int(rng.integers(len(CLASSES)))
    others = [k for k in rng.permutation(len(CLASSES)).tolist() if k != label]
    d = rng.random(64).tolist()
    rows = rng.random((MAX_DISTRACTORS + 1, 24)).tolist()
    hard = difficulty * d[0]

    def level(draw: float) -> float:
        return hard * (0.5 + 0.5 * draw)

    horizon, floor, wall = -0.35 + 0.5 * d[1], 1.1 + 0.9 * d[2], 4.5 + 5.0 * d[3]
    # The surroundings are mostly darker than the things.
    wall_colour = [0.05 + 0.55 * c for c in d[18:21]]
    floor_colour = [0.05 + 0.55 * c for c in d[29:32]]
    wall_texture = _texture(d[10:17], wall_colour, (0.1, 0.6), 0.1 + 0.7 * level(d[17]))
    floor_texture = _texture(d[21:28], floor_colour, (0.3, 1.5), 0.1 + 0.7 * level(d[28]))
    away, height = 2 * np.pi * d[4], 0.45 + 0.45 * d[5]
    flat = (1 - height * height) ** 0.5
    light = (flat * float(np.cos(away)), -abs(flat * float(np.sin(away))), height)

    def thing(shape: int, row: list[float], x: float, y: float, scale: float, z: float) -> Thing:
        stretch = float(np.exp(0.25 * (2 * row[0] - 1)))
        extent = reach(shape) * scale * max(stretch, 1 / stretch)
        return Thing(
            shape=shape,
            x=x,
            y=min(y, horizon + floor / z - extent),  # not below the floor
            scale=scale,
            distance=z,
            angle=np.pi * (2 * row[1] - 1) * (0.08 + 0.3 * level(row[2])),
            stretch=stretch,
            bevel=0.2 + 0.7 * row[3],
            texture=_texture(row[4:11], row[12:15], (0.5, 1.8), 0.2 + 0.6 * row[11]),
        )

    for row in rows:
        row[12:15] = [0.3 + 0.7 * c for c in row[12:15]]
    row = rows[0]
    scale = 0.64 - 0.36 * level(row[15])
    z = (0.55 + 0.25 * d[6]) / scale
    room = (1 - 0.8 * scale) * (0.3 + 0.7 * level(row[19]))
    # Camouflage: the subject's colour goes towards the wall's.
    row[12:15] = _mix(row[12:15], wall_colour, 0.7 * level(row[16]))
    subject = thing(label, row, room * (2 * row[17] - 1), room * (2 * row[18] - 1), scale, z)

    things = []
    occluders = int(d[7] < 0.6 * hard) + int(d[8] < 0.3 * hard)
    for i in range(2 + round((MAX_DISTRACTORS - 2) * level(d[9]))):
        row = rows[i + 1]
        if i < occluders:
            size, angle = scale * (0.18 + 0.15 * row[15]), 2 * np.pi * row[16]
            away = scale * (0.5 + 0.6 * row[17])
            x = subject.x + away * float(np.cos(angle))
            y = subject.y + away * float(np.sin(angle))
            near = z * (0.6 + 0.1 * row[18])
        else:
            size = min(0.1 + 0.3 * row[15], scale * (0.4 + 0.28 * row[16]))
            x, y = 2 * row[17] - 1, 2 * row[18] - 1
            near = (0.55 + 0.25 * d[6]) * (0.85 + 0.3 * row[19]) / size
            near = min(max(near, 1.1 * z), wall - 0.3)
        things.append(thing(others[i], row, x, y, size, near))

    return Scene(
        label=label,
        difficulty=hard,
        things=(*things, subject),
        horizon=horizon,
        floor=floor,
        wall=wall,
        wall_texture=wall_texture,
        floor_texture=floor_texture,
        light=light,
        ambient=0.3 + 0.35 * d[32],
        haze=0.5 * d[33],
        haze_colour=tuple(d[34:37]),
        contrast=1.0 - 0.4 * level(d[37]),
        brightness=0.2 * (d[38] - 0.5),
        noise=0.005 + 0.06 * level(d[39]),
    )


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A random-access source of scenes, as grain reads it; `count` only bounds the index.

    Scene i of a seed and split is the same at every size: only the sensor's noise, a value per
    pixel, differs. The label is the class of the subject: the largest thing by area, and the only
    one of its class. Distractors are of other classes, each class once, at most 0.68 times as
    large and farther away, but for at most two small ones that may hide part of the subject.
    """

    count: int
    size: int = 64
    split: str = "train"
    seed: int = 0
    difficulty: float = DIFFICULTY
    """Difficulty of the hardest images, from 0 to 1, in size, place, clutter, contrast, turn and
    noise; the others spread evenly below."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count={self.count}: must be at least 0")
        if self.size < MIN_SIZE:
            raise ValueError(f"size={self.size}: must be at least {MIN_SIZE} pixels")
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: must be one of {', '.join(SPLITS)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must be at least 0 and below 2**32")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must be in [0, 1]")

    def __len__(self) -> int:
        return self.count

    def _rng(self, index: SupportsIndex) -> np.random.Generator:
        i = index.__index__()
        if not 0 <= i < self.count:
            raise IndexError(f"index={i}: must be at least 0 and below count={self.count}")
        return np.random.default_rng([self.seed, SPLITS.index(self.split), i])

    def scene(self, index: SupportsIndex) -> Scene:
        """The content of an image, before it is drawn."""
        return draw_scene(self._rng(index), self.difficulty)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """image (S, S, 3) uint8, label int32, segmentation (S, S) uint8, depth (S, S) float32.

        In the segmentation 0 is the background and k + 1 is CLASSES[k]; depth is in metres.
        """
        rng = self._rng(index)
        scene = draw_scene(rng, self.difficulty)
        image, classes, depth = render(scene, self.size, rng)
        return {
            "image": image,
            "label": np.int32(scene.label),
            "segmentation": classes,
            "depth": depth,
        }
