"""A sub-network one block at a time, for loops that stop or read out where they like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.latent_stream import Block, apply_block
from adaperceiver_jax.models.outputs import Embedded
from adaperceiver_jax.models.write_head import FoldedQuery


class Stepper:
    """An AdaPerceiver at a token count and a width: `begin`, any number of `block`, any of `write`.

    The latents (B, N, D) are all that changes, so they are all that a compiled loop has to carry.
    """

    def __init__(
        self,
        model: AdaPerceiver,
        params: Any,
        num_tokens: int | None = None,
        width: int | None = None,
        token_granularities: Sequence[int] | None = None,
        folded: FoldedQuery | None = None,
    ) -> None:
        """folded: the class token's query for N latents, where it is there already."""
        self._model, self._params = model, params
        self._run = model.make_run(num_tokens, width, token_granularities)
        self._block = Block(model.config, model.dtype, model.attention)
        self.folded = self._apply("fold", self._run.rope) if folded is None else folded

    def begin(self, images: jax.Array | Embedded) -> jax.Array:
        """Images (B, H, W, C), or what `embed_once` made of them -> latents (B, N, D)."""
        if not isinstance(images, Embedded):
            images = self._apply("embed_once", images)
        return self._apply("read", images, self._run)

    def block(self, z: jax.Array, l: jax.Array | int) -> jax.Array:
        """Runs block l, from 0, which may be traced."""
        chex.assert_shape(z, (None, self._run.mask.num_tokens, self._model.config.embed_dim))
        return apply_block(self._block, self._params["blocks"], l, z, self._run)[0]

    def write(self, z: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """Logits (B, classes) of the latents, or (B, R, classes) of those visible (R, N)."""
        return self._apply("write_logits", z, self.folded, visible)

    def logits(self, images: jax.Array | Embedded, depth: jax.Array | int) -> jax.Array:
        """Logits (B, classes) after `depth` blocks, which may be traced."""

        def step(l: jax.Array, z: jax.Array) -> jax.Array:
            return self.block(z, l)

        return self.write(jax.lax.fori_loop(0, depth, step, self.begin(images)))

    def _apply(self, method: str, *arguments: Any) -> Any:
        return self._model.apply({"params": self._params}, *arguments, method=method)
