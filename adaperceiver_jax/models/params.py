"""Making and counting the parameters of any model of the package."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=0)
def _init(model: nn.Module, key: jax.Array) -> Any:
    example = model.example_inputs()
    return model.init(key, jnp.zeros(example.shape, example.dtype))["params"]


def init_params(model: nn.Module, key: jax.Array) -> Any:
    """Fresh parameters; nothing but the initialisers is compiled."""
    return _init(model, key)


def scale_kernels(params: Any, factor: float) -> Any:
    """The parameters with every linear kernel multiplied.

    Fresh kernels have a standard deviation of 0.02, which suits some 832 channels; a model of a few
    dozen hardly passes its input on with it, and learns nothing for a long time.
    """

    def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf * factor if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


def param_shapes(model: nn.Module) -> Any:
    """The parameters' shapes and dtypes, with nothing allocated."""
    return _init.eval_shape(model, jax.random.key(0))


def count_params(params: Any) -> int:
    """Number of entries in a tree of parameters, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
