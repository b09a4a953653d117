"""Draws a described scene with NumPy: shapes as distance functions, textures, light, depth.

Unit coordinates: x and y run from -1 to 1 over the image, y downwards. Nothing but the sensor
noise depends on the number of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Colour = tuple[float, ...]
"""Red, green, blue."""

MAX_DEPTH = 10.0
TEXTURES = ("plain", "stripes", "checks", "dots", "marble")


@dataclass(frozen=True)
class Texture:
    """A pattern between two colours, in the frame of what carries it."""

    kind: int
    """Index into TEXTURES."""
    frequency: float
    """Waves a unit of the frame."""
    angle: float
    phase: float
    low: Colour
    high: Colour


@dataclass(frozen=True)
class Thing:
    """One object; an undistorted `scale` is the radius of the disc of equal area."""

    shape: int
    """Index into SHAPES."""
    x: float
    y: float
    scale: float
    distance: float
    """Metres; the bulge comes nearer."""
    angle: float
    stretch: float
    """Along the object's own first axis, undone along the second: the area stays."""
    bevel: float
    """Width of the rounded edge, as a fraction of `scale`."""
    texture: Texture


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows. The subject is the last of `things`."""

    label: int
    difficulty: float
    """0 is easy throughout, 1 the hardest."""
    things: tuple[Thing, ...]
    horizon: float
    """y of the floor at infinity."""
    floor: float
    """The floor's depth at y is floor / (y - horizon), up to the wall."""
    wall: float
    """Depth of the wall, metres."""
    wall_texture: Texture
    floor_texture: Texture
    light: tuple[float, float, float]
    """Unit vector towards the light: right, down, out of the image."""
    ambient: float
    haze: float
    """Share of the haze's colour at MAX_DEPTH."""
    haze_colour: Colour
    contrast: float
    brightness: float
    noise: float
    """Standard deviation of the sensor's noise, of a range of 1."""


def _disc(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - 1.0


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.886


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.7776


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - 0.98) - 0.2551


def _star(u: Array, v: Array) -> Array:
    turn = np.arctan2(u, v) * (2.5 / np.pi)
    fold = np.abs(turn - np.rint(turn)) * (np.pi / 2.5)
    # The edge from a tip, at angle 0, to the valley beside it at 36 degrees.
    return np.sqrt(u * u + v * v) * np.cos(fold - 1.1760) - 1.541 * 0.3846


def _cross(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(a, b) - 0.4153, np.maximum(a, b) - 1.1535)


def _crescent(u: Array, v: Array) -> Array:
    vv = v * v
    return np.maximum(np.sqrt((u - 0.42) ** 2 + vv) - 1.34, 1.026 - np.sqrt((u - 1.203) ** 2 + vv))


def _heart(u: Array, v: Array) -> Array:
    u, v = 0.7071 * np.abs(u), 0.7071 * (v + 0.29)
    a, b = u + v, v - u
    lobe = np.sqrt((a - 0.6632) ** 2 + b * b)
    return np.minimum(np.maximum(np.abs(a), np.abs(b)), lobe) - 0.6632


def _hexagon(u: Array, v: Array) -> Array:
    b = np.abs(v)
    return np.maximum(0.866 * np.abs(u) + 0.5 * b, b) - 0.9523


def _arrow(u: Array, v: Array) -> Array:
    a = np.abs(u)
    head = np.maximum(-v, 0.7433 * a + 0.6690 * v - 0.971)
    shaft = np.maximum(a - 0.423, np.abs(v + 0.6375) - 0.793)
    return np.minimum(head, shaft)


SHAPES: dict[str, tuple[Callable[[Array, Array], Array], float]] = {
    "disc": (_disc, 1.0),
    "square": (_square, 1.26),
    "triangle": (_triangle, 1.56),
    "ring": (_ring, 1.25),
    "star": (_star, 1.55),
    "cross": (_cross, 1.24),
    "crescent": (_crescent, 1.64),
    "heart": (_heart, 1.24),
    "hexagon": (_hexagon, 1.1),
    "arrow": (_arrow, 1.49),
}
"""Name: signed distance to the edge in a frame where the area is pi, and the reach."""
_FUNCTIONS = tuple(SHAPES.values())


def reach(shape: int) -> float:
    """The distance of the shape's farthest point from its centre, in units of its scale."""
    return _FUNCTIONS[shape][1]


def _pattern(texture: Texture, u: Array, v: Array, pixel: Array | float) -> Array | float:
    """Share of the texture's high colour; `pixel` is the size of one in the frame of u, v."""
    kind = texture.kind
    if kind == 0:
        return 0.0
    omega = 2 * np.pi * texture.frequency
    a, b = omega * np.cos(texture.angle).item(), omega * np.sin(texture.angle).item()
    wave = np.sin(a * u + (b * v + texture.phase))
    if kind > 1:
        across = a * v - b * u
        if kind == 4:
            wave = np.sin(0.6 * across + 2.0 * wave)
        elif kind == 2:
            wave *= np.sin(across)
        else:
            wave += np.sin(across) - 0.7
    # Edges one pixel soft; what is finer than two pixels fades to grey.
    soft = omega * pixel
    wave *= np.maximum(1.0 / soft, 0.5)
    np.clip(wave, -0.5, 0.5, out=wave)
    wave *= np.clip(np.pi / soft - 1.0, 0.0, 1.0)
    wave += 0.5
    return wave


def _painted(texture: Texture, u: Array, v: Array, pixel: Array | float) -> Array:
    """The texture's colours (3, H, W) or, of a plain one, (3, 1, 1)."""
    low = np.array(texture.low, np.float32)[:, None, None]
    high = np.array(texture.high, np.float32)[:, None, None]
    return low + (high - low) * _pattern(texture, u, v, pixel)


def _background(scene: Scene, at: Array) -> tuple[Array, Array]:
    """Colours (3, S, S) and depth (S, S) of wall and floor; `at` (S,) are the pixels' centres."""
    size = len(at)
    below = np.maximum(at - scene.horizon, scene.floor / scene.wall)
    z = scene.floor / below
    edge = int(np.searchsorted(at, scene.horizon + scene.floor / scene.wall))
    colours = np.empty((3, size, size), np.float32)
    x, step = at[None, :], 2.0 / size
    lx, ly, _ = scene.light
    if edge:
        wall = scene.wall
        y = at[:edge, None]
        lit = (0.8 + 0.15 * lx * x) + 0.15 * ly * y
        paint = _painted(scene.wall_texture, x * wall, y * wall, step * wall)
        np.multiply(paint, lit, out=colours[:, :edge])
    if edge < size:
        near = z[edge:, None]
        # A pixel of the floor is longer than wide.
        pixel = step * np.sqrt(near * near * near / scene.floor)
        lit = (0.65 - 0.35 * ly) + 0.1 * lx * x
        paint = _painted(scene.floor_texture, x * near, near, pixel)
        np.multiply(paint, lit, out=colours[:, edge:])
    # Each thing's shadow is a soft spot on the floor under it.
    places = np.array([(t.x, t.y, t.scale, t.distance) for t in scene.things], np.float32)
    px, py, scale, distance = places.reshape(-1, 4).T[:, :, None]
    foot = scene.horizon + scene.floor / distance
    lift = np.maximum(foot - py - scale, 0.0)
    across = np.exp(-(((at - px + lx * lift) / scale) ** 2))
    along = np.exp(-(((at - foot) / (0.3 * scale)) ** 2)) * (0.6 / (1.0 + 2.0 * lift))
    shadow = np.einsum("nh,nw->hw", along, across)
    shadow *= scene.ambient - 1.0
    shadow += 1.0
    np.maximum(shadow, 0.3, out=shadow)
    colours *= shadow
    return colours, np.repeat(z[:, None], size, axis=1)


def _draw(
    thing: Thing, scene: Scene, at: Array, colours: Array, classes: Array, depth: Array
) -> None:
    """Draws into colours (3, S, S), classes (S, S) and depth (S, S)."""
    size = len(at)
    distance_to_edge, extent = _FUNCTIONS[thing.shape]
    scale, half = thing.scale, size / 2
    extent *= scale * max(thing.stretch, 1 / thing.stretch)
    left = max(int((thing.x - extent + 1) * half) - 1, 0)
    top = max(int((thing.y - extent + 1) * half) - 1, 0)
    right = min(int((thing.x + extent + 1) * half) + 2, size)
    bottom = min(int((thing.y + extent + 1) * half) + 2, size)
    if left >= right or top >= bottom:
        return
    # One row and column more, for the slope of the distance.
    step = 2.0 / size
    x = np.append(at[left:right], at[right - 1] + step) - np.float32(thing.x)
    y = (np.append(at[top:bottom], at[bottom - 1] + step) - np.float32(thing.y))[:, None]
    cos, sin = np.cos(thing.angle).item() / scale, np.sin(thing.angle).item() / scale
    u = (x * (cos / thing.stretch)) + y * (sin / thing.stretch)
    v = (x * (sin * thing.stretch)) - y * (cos * thing.stretch)
    far = distance_to_edge(u, v)
    here = far[:-1, :-1]

    rim = np.clip(here * (1 / thing.bevel) + 1.0, 0.0, 1.0)  # 1 at the edge, 0 on the top
    height = np.sqrt(1.0 - rim * rim)
    box = (slice(top, bottom), slice(left, right))
    below = depth[box]
    metres = height * (-0.4 * min(thing.bevel, 1.0) * scale * thing.distance) + thing.distance
    cover = np.clip(0.5 - here * (scale * half), 0.0, 1.0)
    cover *= metres < below

    lx, ly, lz = scene.light
    slope = (far[:-1, 1:] - here) * (lx * scale * half)
    slope += (far[1:, :-1] - here) * (ly * scale * half)
    slope *= rim
    slope += height * lz
    np.maximum(slope, 0.0, out=slope)
    slope *= 1.15 - scene.ambient
    slope += scene.ambient
    paint = _painted(thing.texture, u[:-1, :-1], v[:-1, :-1], step / scale) * slope
    under = colours[:, top:bottom, left:right]
    paint -= under
    paint *= cover
    under += paint
    inside = cover >= 0.5
    np.copyto(below, metres, where=inside)
    np.copyto(classes[box], thing.shape + 1, where=inside)


def render(scene: Scene, size: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Image (S, S, 3) uint8, class map (S, S) uint8 and depth (S, S) float32 in metres.

    `rng` gives the sensor's noise, a value a pixel, so the noise alone differs between sizes.
    """
    at = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    colours, depth = _background(scene, at)
    classes = np.zeros((size, size), np.uint8)
    for thing in sorted(scene.things, key=lambda t: -t.distance):
        _draw(thing, scene, at, colours, classes, depth)
    # Haze, contrast and brightness are one affine map a pixel.
    clear = depth * (-scene.haze / MAX_DEPTH * scene.contrast)
    clear += scene.contrast
    haze = np.array(scene.haze_colour, np.float32)[:, None, None]
    colours -= haze
    colours *= clear
    colours += (haze - 0.5) * scene.contrast + (0.5 + scene.brightness)
    colours += rng.standard_normal(colours.shape, np.float32) * scene.noise
    colours *= 255.0
    np.clip(colours, 0.0, 255.0, out=colours)
    np.rint(colours, out=colours)
    image = np.ascontiguousarray(colours.astype(np.uint8).transpose(1, 2, 0))
    return image, classes, depth
