"""Our parameters under PyTorch names, and back: a rename, a transpose and a stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from adaperceiver_jax.models.params import param_shapes

_STACK = "blocks"  # the module whose parameters carry a leading axis, one row a block
_COMPONENTS = {"fuse_0": "fuse.0", "fuse_1": "fuse.1", "fuse_3": "fuse.3"}
_LEAVES = {"kernel": "weight", "scale": "weight"}


def _torch_names(path: tuple[str, ...], blocks: int) -> list[str]:
    """The name of a parameter, or of a stack of them the name of each block's."""
    *modules, leaf = (_COMPONENTS.get(part, part) for part in path)
    parts = [*modules, _LEAVES.get(leaf, leaf)]
    if _STACK not in parts:
        return [".".join(parts)]
    cut = parts.index(_STACK) + 1
    return [".".join([*parts[:cut], str(block), *parts[cut:]]) for block in range(blocks)]


def _transpose(path: tuple[str, ...], array: np.ndarray, to_torch: bool) -> np.ndarray:
    """Kernels are (in, out) here and (out, in) there, convolutions HWIO here and OIHW there."""
    if path[-1] != "kernel":
        return array
    if array.ndim == 2:
        return array.T
    return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))


def params_to_torch(model: nn.Module, params: Any) -> dict[str, np.ndarray]:
    """The parameters of any model of the package as NumPy arrays under their PyTorch names.

    Raises ValueError naming the parameters that are not this model's.
    """
    check_params(model, params)
    state = {}
    for path, leaf in flatten_dict(params).items():
        array = np.asarray(leaf)
        names, rows = _torch_names(path, len(array)), array if _STACK in path else [array]
        for name, row in zip(names, rows, strict=True):
            state[name] = np.ascontiguousarray(_transpose(path, row, to_torch=True))
    return state


def check_params(model: nn.Module, params: Any) -> None:
    """Raises ValueError naming the parameters that are missing, left over or of another shape."""
    ours = {path: leaf.shape for path, leaf in flatten_dict(param_shapes(model)).items()}
    given = {path: np.shape(leaf) for path, leaf in flatten_dict(params).items()}
    wrong = [
        f"{'.'.join(path)} is {given.get(path, 'missing')}, the model's is {ours.get(path, 'none')}"
        for path in sorted(ours.keys() | given.keys())
        if ours.get(path) != given.get(path)
    ]
    if wrong:
        raise ValueError(f"these parameters do not fit {type(model).__name__}: {_some(wrong)}")


def params_from_torch(model: nn.Module, state_dict: Mapping[str, Any]) -> Any:
    """A PyTorch state dict (arrays under PyTorch names) as parameters of `model`, in NumPy.

    Raises ValueError naming what is missing, left over or of another shape.
    """
    unused = set(state_dict)
    missing, wrong = [], []

    def take(name: str, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | None:
        if name not in state_dict:
            missing.append(name)
            return None
        unused.discard(name)
        array = _transpose(path, np.asarray(state_dict[name]), to_torch=False)
        if array.shape != shape:
            theirs = np.shape(state_dict[name])
            ours = _transpose(path, np.empty(shape, np.bool_), to_torch=True).shape
            wrong.append(f"{name} is {theirs}, the model's is {ours}")
            return None
        return array

    def convert(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | None:
        stacked = _STACK in path
        names = _torch_names(path, shape[0])
        rows = [take(name, path, shape[1:] if stacked else shape) for name in names]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        return np.stack(found) if stacked else np.ascontiguousarray(found[0])

    shapes = flatten_dict(param_shapes(model))
    params = unflatten_dict({path: convert(path, leaf.shape) for path, leaf in shapes.items()})
    kinds = {"missing": missing, "left over": unused, "of another shape": wrong}
    problems = [f"{kind}: {_some(sorted(names))}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"these weights do not fit {type(model).__name__}; " + "; ".join(problems))
    return params


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
