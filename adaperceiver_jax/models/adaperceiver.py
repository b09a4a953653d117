"""AdaPerceiver: one latent stream for classification, distillation and dense prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from adaperceiver_jax.models.adapters import (
    LearnedToken,
    OutputAdapter,
    PatchEmbed,
    ProjectedPatches,
)
from adaperceiver_jax.models.attention import IMPLEMENTATIONS, ReadHead
from adaperceiver_jax.models.config import (
    AdaPerceiverConfig,
    check_granularities,
    check_images,
    check_sub_network,
)
from adaperceiver_jax.models.latent_stream import Run, run_blocks, stacked_blocks
from adaperceiver_jax.models.masks import make_mask
from adaperceiver_jax.models.outputs import Embedded, Encoded, Output, Readouts
from adaperceiver_jax.models.rope import Rope, make_rope, rope_scale
from adaperceiver_jax.models.write_head import FoldedQuery, WriteHead

ENCODER = ("patch_embed", "process_latents", "read_head", "blocks")
"""The parameters, by their first name, that make the latents; the others read them out."""


def trains_encoder(trained: Mapping[str, Any]) -> bool:
    """True if gradients go back through the blocks when these parameters are trained."""
    return any(name in trained for name in ENCODER)


class AdaPerceiver(nn.Module):
    """The model; `config` says what it is, the other fields only how it is computed.

    Parameters carry the reference's names, with the blocks stacked along a leading axis.
    """

    config: AdaPerceiverConfig
    dtype: DTypeLike = jnp.float32
    """Dtype of the matmuls; parameters, norms, softmax, RoPE and the streams stay float32."""
    attention: str = "cut"
    """'cut' or 'masked': see LatentAttention."""
    remat: bool = False
    """Keep of blocks what linear layers gave alone; the backward pass computes the rest again."""
    unroll: int = 1
    """Blocks a loop iteration; `config.depth` leaves no loop, and `remat` without effect."""

    def setup(self) -> None:
        c = self.config
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(
                f"attention={self.attention!r}: must be one of {', '.join(IMPLEMENTATIONS)}"
            )
        stddev = 1e-6 if c.process_token_init == "learned" else c.embed_dim**-0.5
        self.output_latents: LearnedToken | ProjectedPatches
        self.patch_embed = PatchEmbed(c, self.dtype)
        self.process_latents = LearnedToken((c.embed_dim,), stddev)
        self.read_head = ReadHead(**c.attention, dtype=self.dtype)
        self.blocks = stacked_blocks(c, self.dtype, self.attention, self.remat, self.unroll)
        if c.num_classes is not None:
            self.output_latents = LearnedToken((1, c.embed_dim))
            self.write_head = WriteHead(**c.attention, dtype=self.dtype)
            self.output_adapter = OutputAdapter(c, c.num_classes, c.use_output_ffn, self.dtype)
        if c.output_feat_dim is not None:
            tokens = ProjectedPatches(c.embed_dim, self.dtype)
            write_head = WriteHead(**c.attention, dtype=self.dtype)
            if c.num_classes is not None:  # distillation: a second stream of outputs
                adapter = OutputAdapter(c, c.output_feat_dim, True, self.dtype)
                self.output_latents_feat = tokens
                self.write_head_feat = write_head
                self.output_adapter_feat = adapter
            else:
                adapter = OutputAdapter(c, c.output_feat_dim, c.use_output_ffn, self.dtype)
                self.output_latents = tokens
                self.write_head = write_head
                self.output_adapter = adapter
            self.feature_stream = (tokens, write_head, adapter)

    def _granularities(self, given: Sequence[int] | None) -> tuple[int, ...]:
        return check_granularities(self.config.token_granularities if given is None else given)

    @nn.nowrap
    def example_inputs(self) -> jax.ShapeDtypeStruct:
        """The smallest input that the parameters can be made from."""
        c = self.config
        return jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.in_channels), jnp.float32)

    def __call__(
        self,
        images: jax.Array,
        num_tokens: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> Output:
        """Runs one sub-network on images (B, H, W, C).

        Args:
          num_tokens: latents, any count; None is max_latent_tokens.
          width: of the blocks' FFNs; None is the full width.
          depth: blocks; None is all.
          token_granularities: bounds of the block mask in this call, instead of the config's.
          train: applies dropout and stochastic depth, from the 'dropout' rng.
        """
        c = self.config
        check_sub_network(c, num_tokens, width, depth)
        run = self.make_run(num_tokens, width, token_granularities, train=train)
        embedded = self.embed_once(images)
        z, _ = run_blocks(self, self.read(embedded, run), run, depth or c.depth)
        logits = features = None
        if c.num_classes is not None:
            logits = self.write_logits(z, self.fold(run.rope), train=train)
        if c.output_feat_dim is not None:
            tokens = [z.shape[1]]
            features = self._features(embedded.patches, z, run.rope, tokens, train=train)[0]
        return Output(logits, features)

    def readouts(
        self,
        images: jax.Array,
        widths: ArrayLike | None = None,
        readout_tokens: ArrayLike | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
    ) -> Readouts:
        """One pass over the largest granularity, read out at every granularity and every depth.

        Args:
          widths: (B,) one width a sample, may be traced; None is the full width.
          readout_tokens: (L,) how many latents the readout after each block sees, may be
            traced; None reads no depths.
          token_granularities: T counts instead of the config's; the last is the run's N.
          train: applies dropout and stochastic depth, from the 'dropout' rng.
        """
        c = self.config
        keep = readout_tokens is not None
        granularities = self._granularities(token_granularities)
        num_tokens = max(granularities, default=0)
        _check_array("readout_tokens", readout_tokens, (c.depth,), num_tokens)
        encoded = self.encode(images, widths, granularities, train, keep)
        z, rope, patches = encoded.z, encoded.rope, encoded.patches
        latents: Any = encoded.latents
        positions = jnp.arange(num_tokens)
        by_token = positions < np.array(granularities)[:, None]  # (T, N)
        by_depth = None
        if readout_tokens is not None:
            by_depth = positions < jnp.asarray(readout_tokens)[:, None]  # (L, N)
        token_logits = depth_logits = token_features = depth_features = None
        if c.num_classes is not None:
            folded = self.fold(rope)
            token_logits = self.write_logits(z, folded, by_token, train)  # (B, T, classes)
            token_logits = jnp.moveaxis(token_logits, 1, 0)
            if by_depth is not None:
                visible = by_depth[:, None, None, :]  # (L, B, R, N)
                depth_logits = self.write_logits(latents, folded, visible, train)[:, :, 0]
        if c.output_feat_dim is not None:
            features = self._features(patches, z, rope, granularities, latents, by_depth, train)
            token_features = features[: len(granularities)]
            if by_depth is not None:
                depth_features = features[len(granularities) :]
        return Readouts(token_logits, depth_logits, token_features, depth_features)

    def encode(
        self,
        images: jax.Array,
        widths: ArrayLike | None = None,
        token_granularities: Sequence[int] | None = None,
        train: bool = False,
        keep_latents: bool = False,
    ) -> Encoded:
        """One pass over the largest granularity, before anything is written.

        Args: as of `readouts`; keep_latents: whether those after every block are wanted.
        """
        c = self.config
        granularities = self._granularities(token_granularities)
        if not granularities:
            raise ValueError("token_granularities=(): readouts need at least one token count")
        check_images(images, c.patch_size, c.in_channels)
        _check_array("widths", widths, (images.shape[0],), c.full_width)
        hidden = None
        if widths is not None:
            table = np.array([c.hidden_units(w) for w in range(c.full_width + 1)], np.int32)
            hidden = jnp.asarray(table)[jnp.asarray(widths)]
        run = self.make_run(
            granularities[-1],
            token_granularities=granularities,
            hidden_per_sample=hidden,
            train=train,
            keep_latents=keep_latents,
        )
        embedded = self.embed_once(images)
        z, latents = run_blocks(self, self.read(embedded, run), run, c.depth)
        return Encoded(embedded.patches, z, run.rope, latents)

    @nn.nowrap
    def make_run(
        self,
        num_tokens: int | None = None,
        width: int | None = None,
        token_granularities: Sequence[int] | None = None,
        **more: Any,
    ) -> Run:
        """Inputs of the blocks of a run with N latents; more: other fields of `Run`."""
        c = self.config
        n = num_tokens or c.max_latent_tokens
        scale = rope_scale(n, c.max_latent_tokens) if c.rope_scale is None else c.rope_scale
        rope = make_rope(n, c.head_dim, c.rope_theta, scale)
        mask = make_mask(c.mask, n, self._granularities(token_granularities))
        hidden = None if width is None else c.hidden_units(width)
        return Run(rope, mask, hidden=hidden, **more)

    def embed(self, images: jax.Array) -> jax.Array:
        """images (B, H, W, C) -> patches (B, patches, D): what a policy network looks at."""
        c = self.config
        check_images(images, c.patch_size, c.in_channels)
        return self.patch_embed(images)

    def embed_once(self, images: jax.Array) -> Embedded:
        """Embeds images (B, H, W, C), to be read by any number of sub-networks."""
        patches = self.embed(images)
        return Embedded(patches, *self.read_head.keys_values(patches))

    def read(self, embedded: Embedded, run: Run) -> jax.Array:
        """Embedded images -> latents (B, N, D)."""
        token = self.process_latents()
        return self.read_head(token, embedded.keys, embedded.values, run.rope, run.train)

    def fold(self, rope: Rope) -> FoldedQuery:
        """The class token's query for N latents, folded once for all samples and readouts."""
        return self.write_head.fold(self._class_token(), rope)

    def _class_token(self) -> jax.Array:
        """The one output token (D,) of a model with classes."""
        token: Any = self.output_latents
        return token()[0]

    def write_logits(
        self,
        z: jax.Array,
        folded: FoldedQuery,
        visible: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Latents (..., N, D) -> logits (..., classes), or (..., R, classes) for R readouts.

        visible: bool, broadcasts to (..., R, N), which latents each readout sees.
        """
        written = self.write_head.write_one(self._class_token(), folded, z, visible, train)
        logits = self.output_adapter(written, train)
        return logits if visible is not None else logits[..., 0, :]

    def output_tokens(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Patches (B, I, D) -> an output token for each (B, I, D) and its query (B, I, H, d)."""
        tokens, write_head, _ = self.feature_stream
        outputs = tokens(patches)
        return outputs, write_head.queries(outputs)

    def keys_values(self, z: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
        """Latents (B, N, D) -> (B, N, H, d) each: the first t are those of granularity t."""
        return self.feature_stream[1].keys_values(z, rope)

    def write_features(
        self,
        outputs: jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        train: bool = False,
    ) -> jax.Array:
        """Features (B, patches, features) of output tokens that read these keys and values."""
        _, write_head, adapter = self.feature_stream
        return adapter(write_head(outputs, queries, keys, values, train=train), train)

    def _features(
        self,
        patches: jax.Array,
        z: jax.Array,
        rope: Rope,
        granularities: Sequence[int],
        latents: jax.Array | None = None,
        visible: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Features (R, B, patches, features) of the first t of the latents for every granularity,
        and of those visible (L, N) after every block (L, B, N, D).

        All readouts are made together: in a loop over them, gradients of weights that are split
        over devices would be summed in every round.
        """
        _, write_head, adapter = self.feature_stream
        outputs, q = self.output_tokens(patches)
        k, v = self.keys_values(z if latents is None else latents, rope)
        each: list[jax.Array] = []
        if latents is not None:
            assert visible is not None
            each = [write_head.read_each(q, k, v, visible, train)]
            k, v = k[-1], v[-1]  # the last block's latents are z
        attention = write_head.cattn
        tokens = [
            attention.attend(q, k[:, :t], v[:, :t], key=attention.weight_key(train))
            for t in granularities
        ]
        read = jnp.concatenate([jnp.stack(tokens), *each])
        return adapter(outputs + attention.project(read, train), train)


def _check_array(name: str, value: ArrayLike | None, shape: tuple[int, ...], most: int) -> None:
    """Checks a per-sample or per-depth array; values only where they are known."""
    if value is None:
        return
    if jnp.shape(value) != shape:
        raise ValueError(f"{name} of shape {jnp.shape(value)}: must be {shape}")
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} of dtype {values.dtype}: must be integers")
    if values.min() < 1 or values.max() > most:
        raise ValueError(f"{name}={values.tolist()}: each must be in 1..{most}")
