"""Mixup, cutmix and random erasing on the device, each sample with draws of its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingSettings:
    """Which of them, and how strong; 0 leaves one out."""

    mixup: float = 0.0
    """Alpha of the Beta distribution that the share of a sample is drawn from."""
    cutmix: float = 0.0
    """Alpha likewise, of the area kept. With both on, a batch gets one of them, at random."""
    erase: float = 0.0
    """Probability that a rectangle of an image is filled with noise."""
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"mixing.{name}={getattr(self, name)}: must be at least 0")
        for name in ("erase", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mixing.{name}={getattr(self, name)}: must be in [0, 1]")


def mix(
    images: jax.Array, labels: jax.Array, settings: MixingSettings, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images (B, H, W, C), normalised, and soft labels (B, K), mixed and erased by settings."""
    choose, first, second, third = jax.random.split(key, 4)
    if settings.mixup and settings.cutmix:
        images, labels = jax.lax.cond(
            jax.random.bernoulli(choose),
            lambda: cutmix(images, labels, settings.cutmix, second),
            lambda: mixup(images, labels, settings.mixup, first),
        )
    elif settings.mixup:
        images, labels = mixup(images, labels, settings.mixup, first)
    elif settings.cutmix:
        images, labels = cutmix(images, labels, settings.cutmix, second)
    if settings.erase:
        images = erase(images, settings.erase, third)
    return images, labels


def _partner(x: jax.Array) -> jax.Array:
    """Each sample's partner: the batch in reverse. The batch itself is in random order."""
    return jnp.flip(x, axis=0)


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
    """share (B,) of each sample and the rest of its partner."""
    share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return share * x + (1 - share) * _partner(x)


def mixup(
    images: jax.Array, labels: jax.Array, alpha: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each image and label blended with its partner's; a share ~ Beta(alpha, alpha) a sample."""
    share = jax.random.beta(key, alpha, alpha, (images.shape[0],))
    return _blend(images, share), _blend(labels, share)


def _inside(
    top: jax.Array, left: jax.Array, tall: jax.Array, wide: jax.Array, height: int, width: int
) -> jax.Array:
    """(B, H, W) bool: the rectangle of each sample, corners and sizes (B,) in pixels."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    down = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return down[:, :, None] & across[:, None, :]


def cutmix(
    images: jax.Array, labels: jax.Array, alpha: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A rectangle of each image is its partner's; labels by the area that is left.

    The rectangle has the image's proportions and 1 - share of its area, share ~ Beta(alpha,
    alpha), around a uniform centre, cut off at the border.
    """
    batch, height, width, _ = images.shape
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (batch,)))
    edges = []
    for centre_key, n in ((row_key, height), (column_key, width)):
        middle = jnp.floor(jax.random.uniform(centre_key, (batch,)) * n)
        half = jnp.floor(side * n) // 2
        edges.append((jnp.clip(middle - half, 0, n), jnp.clip(middle + half, 0, n)))
    (top, bottom), (left, right) = edges
    inside = _inside(top, left, bottom - top, right - left, height, width)
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return jnp.where(inside[..., None], _partner(images), images), _blend(labels, share)


def erase(
    images: jax.Array,
    probability: float,
    key: jax.Array,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """A rectangle of some images, each pixel and channel replaced by normal noise.

    The area is uniform in `area` (of the image's), height over width log-uniform in `ratio`; a
    rectangle that would not fit is cut to the image.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 6)
    share = jax.random.uniform(keys[0], (batch,), minval=area[0], maxval=area[1])
    log_ratio = jax.random.uniform(
        keys[1], (batch,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
    )
    pixels, shape = share * height * width, jnp.exp(log_ratio)
    tall = jnp.clip(jnp.round(jnp.sqrt(pixels * shape)), 1, height)
    wide = jnp.clip(jnp.round(jnp.sqrt(pixels / shape)), 1, width)
    top = jnp.floor(jax.random.uniform(keys[2], (batch,)) * (height - tall + 1))
    left = jnp.floor(jax.random.uniform(keys[3], (batch,)) * (width - wide + 1))
    inside = _inside(top, left, tall, wide, height, width)
    inside &= jax.random.bernoulli(keys[4], probability, (batch,))[:, None, None]
    noise = jax.random.normal(keys[5], images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)
