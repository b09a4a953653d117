"""Results of a pass over an AdaPerceiver: predictions, and the states between its parts."""

from __future__ import annotations

import jax
from flax import struct

from adaperceiver_jax.models.rope import Rope


@struct.dataclass
class Output:
    """Predictions of one sub-network."""

    logits: jax.Array | None
    """(B, classes)"""
    features: jax.Array | None
    """(B, patches, features)"""


@struct.dataclass
class Readouts:
    """Predictions of every granularity (T) and every depth (L) of one pass, for training."""

    token_logits: jax.Array | None
    """(T, B, classes)"""
    depth_logits: jax.Array | None
    """(L, B, classes)"""
    token_features: jax.Array | None
    """(T, B, patches, features)"""
    depth_features: jax.Array | None
    """(L, B, patches, features)"""


@struct.dataclass
class Embedded:
    """Images as any number of latents may read them, more than once."""

    patches: jax.Array
    """(B, patches, D)"""
    keys: jax.Array
    """(B, patches, H, d)"""
    values: jax.Array
    """(B, patches, H, d)"""


@struct.dataclass
class Encoded:
    """One pass over the latents, which any number of readouts may be made of."""

    patches: jax.Array
    """(B, patches, D)"""
    z: jax.Array
    """(B, N, D), after the last block"""
    rope: Rope
    latents: jax.Array | None = None
    """(L, B, N, D), after every block, where they were asked for"""
