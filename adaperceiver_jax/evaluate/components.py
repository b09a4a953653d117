"""Patch features of sub-networks as colours: their first three principal components."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.config import AdaPerceiverConfig, check_sub_network
from adaperceiver_jax.models.dense import DenseModel
from adaperceiver_jax.models.masks import blocks_of

SHOWN = (1, 99)
"""Percentiles of a component that become 0 and 1; what lies beyond is clipped."""
NOISE = 1e-5
"""A component that varies by less than this part of the largest feature is only rounding."""


class SubNetwork(NamedTuple):
    """The arguments of a call that choose one."""

    num_tokens: int
    width: int
    depth: int


COLUMNS = ("image", *SubNetwork._fields, "row", "column", "red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture of a figure: an image's features under a sub-network, or the image itself."""

    image: str
    """The image's name."""
    sub_network: SubNetwork | None
    """None for the image itself."""
    colours: np.ndarray
    """(rows, columns, 3) in [0, 1], one cell per patch, or per pixel of the image itself."""


def feature_model(model: Any) -> AdaPerceiver:
    """The AdaPerceiver whose patch features a model predicts or builds on."""
    name = type(model).__name__
    if isinstance(model, DenseModel) and isinstance(model.config.backbone, AdaPerceiverConfig):
        return AdaPerceiver(model.config.backbone)
    if not isinstance(model, AdaPerceiver):
        raise ValueError(
            f"model={name}: must be an AdaPerceiver, or a segmentation or depth model on one"
        )
    if model.config.output_feat_dim is None:
        raise ValueError(
            "model: a classifier (output_feat_dim=None), which has no patch features; take one "
            "that features were distilled into, or a segmentation or depth model"
        )
    return model


def feature_params(model: Any, params: Any) -> Any:
    """The parameters of `feature_model`, out of a model's."""
    return params["backbone"] if isinstance(model, DenseModel) else params


def whole_network(config: AdaPerceiverConfig) -> SubNetwork:
    """The sub-network with everything, whose components give the colours."""
    return SubNetwork(config.max_latent_tokens, config.full_width, config.depth)


def patch_features(
    model: AdaPerceiver, params: Any, images: Any, sub_networks: Sequence[SubNetwork]
) -> np.ndarray:
    """Features (S, B, patches, F) of images (B, H, W, C) under each of S sub-networks.

    All depths of the whole network come from one pass, and so do its trained token counts, unless
    latents see each other without a mask. Every other sub-network takes a pass of its own.
    """
    c = model.config
    for sub_network in sub_networks:
        check_sub_network(c, *sub_network)
    whole, images = whole_network(c), jnp.asarray(images)
    granularities = blocks_of(whole.num_tokens, c.token_granularities)
    by_tokens = [whole._replace(num_tokens=t) for t in granularities if c.mask != "none"]
    by_depth = [whole._replace(depth=l) for l in range(1, c.depth + 1)]
    found: dict[SubNetwork, Any] = {}
    if len({*sub_networks} & {*by_tokens, *by_depth}) > 1:
        token_features, depth_features = _one_pass(model, granularities, params, images)
        found |= zip(by_depth, depth_features, strict=True)
        found |= zip(by_tokens, token_features, strict=False)
    for each in {*sub_networks} - {*found}:
        found[each] = _own_pass(model, each, params, images)
    return np.stack([np.asarray(found[each]) for each in sub_networks])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _own_pass(model: AdaPerceiver, sub_network: SubNetwork, params: Any, images: jax.Array) -> Any:
    out: Any = model.apply({"params": params}, images, *sub_network)
    return out.features


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_pass(
    model: AdaPerceiver, granularities: tuple[int, ...], params: Any, images: jax.Array
) -> Any:
    """Features of every granularity (T, B, patches, F) and every depth (L, B, patches, F)."""
    out: Any = model.apply(
        {"params": params},
        images,
        readout_tokens=np.full(model.config.depth, granularities[-1]),
        token_granularities=granularities,
        method="readouts",
    )
    return out.token_features, out.depth_features


def principal_components(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Colours (..., patches, 3) in [0, 1] of features (..., patches, F) of one image.

    Mean, directions and range are those of `reference` (patches, F), the whole network's features
    of that image, so that a colour means the same in every panel and no panel changes another's.
    Each direction's largest entry is positive. The range is SHOWN's percentiles.
    """
    patches, size = reference.shape
    if size < 3 or patches < 4:
        raise ValueError(
            f"reference of shape {reference.shape}: three components need at least 4 patches of 3 "
            "features; take a larger image or another model"
        )
    reference = reference.astype(np.float64)
    mean = reference.mean(0)
    directions = np.linalg.svd(reference - mean, full_matrices=False)[2][:3]
    largest = np.abs(directions).argmax(1)
    directions *= np.sign(directions[np.arange(3), largest])[:, None]
    low, high = np.percentile((reference - mean) @ directions.T, SHOWN, axis=0)
    span = high - low
    shown = span > NOISE * np.abs(reference).max()
    scaled = ((features - mean) @ directions.T - low) / np.where(shown, span, 1)
    return np.where(shown, scaled.clip(0, 1), 0.5)


def component_panels(
    model: AdaPerceiver,
    params: Any,
    images: np.ndarray,
    names: Sequence[str],
    sub_networks: Sequence[SubNetwork],
) -> list[Panel]:
    """A panel per image (B, H, W, C) and sub-network, one image after the other."""
    rows, columns = (side // model.config.patch_size for side in images.shape[1:3])
    wanted = (*sub_networks, whole_network(model.config))
    features = patch_features(model, params, images, wanted)
    panels = []
    for i, name in enumerate(names):
        colours = principal_components(features[:-1, i], features[-1, i])
        colours = colours.reshape(-1, rows, columns, 3)
        panels += [Panel(name, *each) for each in zip(sub_networks, colours, strict=True)]
    return panels


def csv_text(panels: Iterable[Panel]) -> str:
    """The content of a CSV file, one line per cell; an image itself has no sub-network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for panel in panels:
        start = (panel.image, *(panel.sub_network or ("", "", "")))
        for place in np.ndindex(*panel.colours.shape[:2]):
            writer.writerow((*start, *place, *map("{:.4f}".format, panel.colours[place])))
    return text.getvalue()


def read_panels(path: str | os.PathLike) -> list[Panel]:
    """The panels of a file that `csv_text` wrote; ValueError names what is wrong with it."""
    cells: dict[tuple[str, SubNetwork | None], dict[tuple[int, int], list[float]]] = {}
    with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != COLUMNS:
            raise ValueError(f"{path}: must begin with the columns {', '.join(COLUMNS)}")
        for line in reader:
            try:
                name, *sizes, row, column, red, green, blue = line
                sub_network = SubNetwork(*map(int, sizes)) if any(sizes) else None
                colour = [float(value) for value in (red, green, blue)]
                cells.setdefault((name, sub_network), {})[int(row), int(column)] = colour
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not cells:
        raise ValueError(f"{path}: holds no panel")
    panels = []
    for (name, sub_network), found in cells.items():
        rows, columns = np.max(list(found), axis=0) + 1
        if len(found) != rows * columns:
            raise ValueError(
                f"{path}: {name}, {sub_network or 'the image itself'}: has {len(found)} cells of "
                f"{rows} x {columns}; write the file anew"
            )
        colours = np.array([found[place] for place in sorted(found)])
        panels.append(Panel(name, sub_network, colours.reshape(rows, columns, 3)))
    return panels
