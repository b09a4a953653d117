"""Checks of what was written: tensor by tensor, and by running both sides."""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from adaperceiver_jax.convert.describe import config_to_dict
from adaperceiver_jax.convert.files import State

BAR = 1e-4
"""Largest difference, as a part of an output's largest entry. Float32 sums in another order differ
by about 1e-6."""
TINY = 1e-30
"""Least divisor, so that outputs of zeros can be compared."""


def have_torch() -> bool:
    """True if PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def different_tensors(state: State, other: State) -> list[str]:
    """Names under which the two do not hold the same bits of the same dtype and shape."""
    return [
        name
        for name in sorted(state.keys() | other.keys())
        if name not in state or name not in other or not _same_bits(state[name], other[name])
    ]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: nn.Module, params: Any, inputs: Any) -> Any:
    return model.apply({"params": params}, inputs)


def torch_difference(model: nn.Module, params: Any, state: State, seed: int = 0) -> float:
    """Runs `params` in JAX and `state` in PyTorch on one random image (or patches).

    Returns the largest difference of any output, as a part of that output's largest entry. Names,
    shapes and config.json go the way another program would take them: into a PyTorch model made
    from the config, strictly.
    """
    import torch

    from adaperceiver_jax.convert.torch_twin import twin

    shape = model.example_inputs().shape
    inputs = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        ours: Any = _apply(model, params, inputs)
    with torch.device("meta"):
        other = twin(config_to_dict(model))
    tensors = {name: torch.tensor(np.asarray(x, np.float32)) for name, x in state.items()}
    other.load_state_dict(tensors, strict=True, assign=True)
    with torch.inference_mode():
        theirs = other(torch.tensor(inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs))
    return max(
        relative_difference(getattr(ours, name), value.numpy()) for name, value in theirs.items()
    )


def relative_difference(got: Any, want: Any) -> float:
    """The largest difference as a part of the largest entry wanted; infinite where either side is
    not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.inf
    difference = np.abs(got - want).max()
    return float(difference / max(np.abs(want).max(), TINY)) if difference else 0.0


def not_finite(state: State) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, array in state.items() if not np.isfinite(array).all()]
