"""Every sub-network of a dense model over a whole set: one pass a width, read out at any depth."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.data.sample import Sample, Source
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.points import DensePoint, kind_of_tokens
from adaperceiver_jax.models.masks import blocks_of
from adaperceiver_jax.models.vit import ViTConfig
from adaperceiver_jax.tasks.dense import Dense
from adaperceiver_jax.train.evaluation import Totals
from adaperceiver_jax.train.task import Batch, SubNetwork

PADDED_TO = 128
"""Own-size maps are padded to multiples of it."""
NETWORK, OWN = "network", "own"
Key = tuple[SubNetwork | None, str]


def own_size_batches(
    source: Source, prepare: Callable[[Sample], Sample], batch_size: int, threads: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of a source in batches, with maps at their own size as well.

    prepare: `Preparation.own_size`. The last batch is filled up; 'weight' is 0 for a filler.
    """
    if len(source) < jax.process_count():
        raise ValueError(f"{len(source)} images for {jax.process_count()} processes: too few")
    mine = range(jax.process_index(), len(source), jax.process_count())
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(mine), batch_size):
            numbers = mine[first : first + batch_size]
            samples = list(pool.map(lambda i: prepare(source[i]), numbers))
            weight = np.zeros(batch_size, np.float32)
            weight[: len(samples)] = 1
            samples += samples[-1:] * (batch_size - len(samples))
            yield {**_stacked(samples), "weight": weight}


def _stacked(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Arrays of a batch; own-size maps padded to a common shape."""
    own = [name for name in samples[0] if name.startswith("own_")]
    batch = {n: np.stack([s[n] for s in samples]) for n in samples[0] if n not in own}
    if not own:
        return batch
    sizes = np.array([s[own[0]].shape for s in samples], np.int32)
    shape = [int(-(-side // PADDED_TO) * PADDED_TO) for side in sizes.max(0)]
    for name in own:
        fill = 255 if name == "own_segmentation" else 0
        padded = np.full((len(samples), *shape), fill, samples[0][name].dtype)
        for row, sample in zip(padded, samples, strict=True):
            height, width = sample[name].shape
            row[:height, :width] = sample[name]
        batch[name] = padded
    return {**batch, "own_size": sizes}


def sweep_dense(
    task: Any,
    params: Any,
    batches: Iterable[Batch],
    tokens: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    *,
    own_size: bool = False,
    flip: bool = False,
) -> list[DensePoint]:
    """Scores and costs of sub-networks over this process's batches, added up over all processes.

    Args:
      task: Segment or Depth; a ViT's has one sub-network, the whole.
      batches: pixels and maps as `Preparation` gives them, 'weight', and with `own_size` what
        `own_size_batches` adds.
      tokens, widths, depths: None is the trained counts, the trained widths, the whole depth.
      own_size: score at each map's own size as well.
      flip: predict from the mean of the maps of each image and its mirror image.
    """
    kinds = (NETWORK, OWN) if own_size else (NETWORK,)
    score = _scorer(task, kinds)
    totals: dict[Key, Totals] = collections.defaultdict(Totals)
    config = task.model.config
    whole_vit = isinstance(config.backbone, ViTConfig)
    task.check_sub_networks(tokens, widths, depths)
    predict = _vit_maps(task, flip) if whole_vit else _all_maps(task, tokens, widths, depths, flip)
    mesh = Mesh(np.array(jax.local_devices()), "data")
    params = jax.device_put(params, NamedSharding(mesh, P()))
    for batch in batches:
        arrays = jax.device_put(batch, NamedSharding(mesh, P("data")))
        for sub_network, maps in predict(params, arrays["image"]):
            for kind, sums in zip(kinds, score(maps, arrays), strict=True):
                totals[sub_network, kind].add(sums)
    if not totals:
        raise ValueError("batches: held no images")
    return [
        _point(task, sub_network, kind, flip, over_processes(total.sums()))
        for (sub_network, kind), total in totals.items()
    ]


def _point(
    task: Any,
    sub_network: SubNetwork | None,
    kind: str,
    flip: bool,
    sums: dict[str, np.ndarray],
) -> DensePoint:
    config = task.model.config
    tokens, width, depth = sub_network or (None, None, None)
    tokens_are = "whole"
    if tokens is not None:
        trained = {*config.backbone.token_granularities, *task.settings.token_granularities}
        tokens_are = kind_of_tokens(tokens, sorted(trained))
    cost = flops(config, tokens, width, depth, task.image_size)
    return DensePoint(
        num_tokens=tokens,
        width=width,
        depth=depth,
        tokens_are=tokens_are,
        resolution=kind,
        mask=getattr(config.backbone, "mask", ""),
        flip=flip,
        scores=task.summarise(sums),
        encoder_gflops=cost.encoder / 1e9,
        head_gflops=cost.head / 1e9,
    )


def over_processes(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of all processes; as bytes, since JAX would cut 64 bits to 32."""
    if jax.process_count() == 1:
        return sums
    total = {}
    for name in sorted(sums):
        value = np.asarray(sums[name])
        flat = np.ascontiguousarray(value).reshape(-1)
        each = np.asarray(multihost_utils.process_allgather(flat.view(np.uint8)))
        total[name] = each.view(value.dtype).reshape(-1, *value.shape).sum(0)
    return total


def _scorer(task: Any, kinds: Sequence[str]) -> Callable:
    """(maps, batch) -> the sums of a batch, a dict a resolution."""

    def score(maps: jax.Array, batch: Batch) -> list[dict[str, jax.Array]]:
        counts = batch["weight"] > 0

        def total(x: jax.Array) -> jax.Array:
            return jnp.where(jnp.expand_dims(counts, tuple(range(1, x.ndim))), x, 0).sum(0)

        scores = {NETWORK: task.score, OWN: task.score_own}
        return [jax.tree.map(total, scores[kind](maps, batch)) for kind in kinds]

    return jax.jit(score)


def _vit_maps(task: Dense, flip: bool) -> Callable:
    @jax.jit
    def maps(params: Any, images: jax.Array) -> jax.Array:
        one = task.maps(params, images, None)
        if not flip:
            return one
        return (one + task.maps(params, images[:, :, ::-1], None)[:, :, ::-1]) / 2

    def predict(params: Any, images: jax.Array) -> Iterator[tuple[None, jax.Array]]:
        yield None, maps(params, images)

    return predict


def _all_maps(
    task: Dense,
    tokens: Sequence[int] | None,
    widths: Sequence[int] | None,
    depths: Sequence[int] | None,
    flip: bool,
) -> Callable:
    """(params, images) -> every sub-network with its maps.

    The trained token counts share one pass a width, which keeps the latents after every block; each
    other count takes one of its own, and so does each that such a pass would give other positions
    or, without a mask, other latents to see.
    """
    c = task.model.config.backbone
    trained = c.token_granularities
    tokens = trained if tokens is None else tuple(tokens)
    widths = (c.widths or (c.full_width,)) if widths is None else tuple(widths)
    depths = (c.depth,) if depths is None else tuple(depths)
    unscaled = blocks_of(c.max_latent_tokens, trained)
    shared = tuple(t for t in trained if c.rope_scale is not None or t in unscaled)
    shared = () if c.mask == "none" else shared
    runs = [(shared, [t for t in tokens if t in shared])]
    runs += [(blocks_of(t, trained), [t]) for t in tokens if t not in shared]

    def encode(params: Any, images: jax.Array, width: jax.Array, run: tuple[int, ...]) -> Any:
        pixels = jnp.concatenate([images, images[:, :, ::-1]]) if flip else images
        return task.model.apply(
            {"params": params},
            task.images.normalise(pixels),
            jnp.broadcast_to(width, pixels.shape[:1]),
            run,
            keep_latents=True,
            method="encode",
        )

    def read(
        params: Any, encoded: Any, l: jax.Array, shape: tuple[int, ...], wanted: tuple[int, ...]
    ) -> list[jax.Array]:
        at_depth = encoded.replace(z=encoded.latents[l - 1], latents=None)
        each: Any = task.model.apply(
            {"params": params}, lambda maps: maps, shape, at_depth, wanted, method="read_encoded"
        )
        if not flip:
            return each
        halves = (jnp.split(maps, 2) for maps in each)
        return [(one + mirrored[:, :, ::-1]) / 2 for one, mirrored in halves]

    encode = jax.jit(encode, static_argnums=3)
    read = jax.jit(read, static_argnums=(3, 4))

    def predict(params: Any, images: jax.Array) -> Iterator[tuple[SubNetwork, jax.Array]]:
        for run, wanted in runs:
            if not wanted:
                continue
            for w in widths:
                encoded = encode(params, images, jnp.int32(w), run)
                for l in depths:
                    found = read(params, encoded, jnp.int32(l), images.shape, tuple(wanted))
                    yield from (((t, w, l), m) for t, m in zip(wanted, found, strict=True))

    return predict
