"""Reading the goldens, and the bars that the package is held to."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

import adaperceiver_jax as ap

OUTPUTS = dict(rtol=2e-5, atol=2e-5)
LOSSES = dict(rtol=1e-5, atol=1e-5)
GRADIENTS = 1e-4  # of the largest entry

SIZES = dict(
    embed_dim=48,
    num_heads=3,
    depth=4,
    max_latent_tokens=32,
    token_granularities=(4, 8, 16, 32),
    widths=(24, 36, 48),
    image_size=32,
    patch_size=8,
    num_classes=10,
)
"""What the goldens without a config.json share."""
FEATURES = 40
"""Channels of their features."""
DENSE = ap.AdaPerceiverConfig(
    **{**SIZES, "num_classes": None}, output_feat_dim=FEATURES, use_output_ffn=True
)
TRAINED = {
    "train_classification": ap.AdaPerceiver(ap.AdaPerceiverConfig(**SIZES)),
    "train_distillation": ap.AdaPerceiver(ap.AdaPerceiverConfig(**SIZES, output_feat_dim=FEATURES)),
    "train_segmentation": ap.SegmentationModel(
        ap.SegmentationConfig(backbone=DENSE, num_classes=9)
    ),
    "train_depth": ap.DepthModel(ap.DepthConfig(backbone=DENSE, bins=16)),
}
"""The models that the goldens of training are of."""


@dataclasses.dataclass
class Golden:
    """One folder: what was called, with which weights, and what came of it."""

    cases: dict
    arrays: dict[str, np.ndarray]
    weights: dict[str, np.ndarray] | None

    @property
    def images(self) -> np.ndarray:
        """(B, H, W, C)"""
        return self.arrays["images"].transpose(0, 2, 3, 1)

    def params(self, model):
        return jax.tree.map(jax.numpy.asarray, ap.params_from_torch(model, self.weights))

    def named(self, name: str, count: int) -> list[np.ndarray]:
        """The arrays `name`.0 to `name`.(count - 1)."""
        return [self.arrays[f"{name}.{i}"] for i in range(count)]


def read(folder: Path) -> Golden:
    weights = folder / "weights.safetensors"
    return Golden(
        json.loads((folder / "cases.json").read_text()),
        load_file(folder / "cases.safetensors"),
        load_file(weights) if weights.exists() else None,
    )


def depth_model(golden: Golden) -> ap.DepthModel:
    """The golden's model, its bins as they are said there."""
    said = {name: golden.cases[name] for name in ("bins", "min_depth", "max_depth")}
    return ap.DepthModel(ap.DepthConfig(backbone=DENSE, **said))


def assert_gradients(model, gradients, golden: Golden) -> None:
    """Every gradient of the golden, under its PyTorch name, to 1e-4 of its largest entry.

    The read head's key bias shifts all scores of a query alike (no RoPE on its keys), so its
    gradient is zero but for rounding, in the golden as here: there the bar is 1e-6 of the key
    weight's largest gradient, for either side.
    """
    ours = ap.params_to_torch(model, gradients)
    wanted = {k.removeprefix("grad:"): v for k, v in golden.arrays.items() if "grad:" in k}
    assert set(ours) == set(wanted)
    for name, want in wanted.items():
        if name.endswith("read_head.cattn.k.bias"):
            bar = 1e-6 * np.abs(wanted[name.replace("bias", "weight")]).max()
            assert max(np.abs(ours[name]).max(), np.abs(want).max()) < bar, name
            continue
        assert np.abs(want).max() > 0, name
        error = np.abs(ours[name] - want).max() / np.abs(want).max()
        assert error <= GRADIENTS, f"{name}: {error:.1e} of the largest entry"
