"""One sub-network as a program that needs this package no more: StableHLO, or ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from adaperceiver_jax.convert.describe import config_to_dict
from adaperceiver_jax.convert.whole import write_bytes, write_whole

PROGRAM, WEIGHTS, ABOUT = "program.jax", "weights.npz", "about.json"
ONNX = "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")
DYNAMIC = "dynamic"
ONNX_HELP = (
    "needs jax2onnx: pip install onnx onnx-ir onnxruntime, then pip install --no-deps jax2onnx "
    "(its own pins exclude the Orbax that training needs; converting needs neither)"
)


def make_program(
    model: nn.Module, num_tokens: int | None
) -> Callable[[Mapping[str, Any], Any], dict[str, jax.Array]]:
    """(weights by path, images) -> outputs by name; weights are {'blocks/attn/q/kernel': ...}."""
    arguments: dict[str, Any] = {} if num_tokens is None else {"num_tokens": num_tokens}

    def program(weights: Mapping[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        params = unflatten_dict(dict(weights), sep="/")
        out: Any = model.apply({"params": params}, images, **arguments)
        return {name: value for name, value in vars(out).items() if value is not None}

    return program


def save_program(
    model: nn.Module,
    params: Any,
    folder: Path,
    *,
    num_tokens: int | None = None,
    batch: int | str = DYNAMIC,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes PROGRAM (jax.export: StableHLO), WEIGHTS and ABOUT into a folder.

    Args:
      num_tokens: latents of the sub-network; None is the model's own, or it has none.
      batch: images a call, or 'dynamic' for any.
      platforms: what it is compiled for when it is called: any of PLATFORMS.
    """
    # Weights are arguments: as constants they are folded for minutes and held several times.
    weights = _by_path(params)
    inputs = model.example_inputs()
    first = jax.export.symbolic_shape("batch")[0] if batch == DYNAMIC else batch
    exported = jax.export.export(
        jax.jit(make_program(model, num_tokens)), platforms=tuple(platforms)
    )(
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()},
        jax.ShapeDtypeStruct((first, *inputs.shape[1:]), inputs.dtype),
    )
    folder.mkdir(parents=True, exist_ok=True)
    program = bytes(exported.serialize())
    write_whole(folder / WEIGHTS, lambda to: _savez(to, weights))
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    shapes = {name: leaf.shape for name, leaf in outputs.items()}
    _write_about(folder, model, num_tokens, (batch, *inputs.shape[1:]), shapes, platforms)
    write_bytes(folder / PROGRAM, program)


def _write_about(
    folder: Path,
    model: nn.Module,
    num_tokens: int | None,
    images: Sequence[int | str],
    outputs: Mapping[str, Sequence[Any]],
    platforms: Sequence[str],
) -> None:
    """Writes ABOUT, for people and programs that have only the folder."""
    about = {
        "images": list(images),
        "outputs": {
            name: [size if isinstance(size, int) else DYNAMIC for size in shape]
            for name, shape in outputs.items()
        },
        "num_tokens": num_tokens,
        "platforms": list(platforms),
        "jax": jax.__version__,
        "model": config_to_dict(model),
    }
    write_bytes(folder / ABOUT, json.dumps(about, indent=2).encode())


def _by_path(params: Any) -> dict[str, np.ndarray]:
    """Weights by path, in float32: the dtype of the computation, which any NumPy reads."""
    return {name: np.asarray(x, np.float32) for name, x in flatten_dict(params, sep="/").items()}


def _savez(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # by its name savez would add an ending
        np.savez(file, **weights)  # type: ignore[arg-type]


def call_program(folder: Path, images: Any) -> dict[str, jax.Array]:
    """Runs what `save_program` wrote, as a program that has nothing but JAX would."""
    program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    with np.load(folder / WEIGHTS) as weights:
        return program.call(dict(weights), images)


def save_onnx(
    model: nn.Module, params: Any, folder: Path, *, num_tokens: int | None = None, batch: int = 1
) -> None:
    """Writes ONNX (large weights in a file beside it) and ABOUT, for images (batch, H, W, C).

    ValueError if jax2onnx is not installed.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(f"ONNX {ONNX_HELP} ({error})") from error
    weights = _by_path(params)
    program = make_program(model, num_tokens)
    shape = (batch, *model.example_inputs().shape[1:])
    # Traced here and not by jax2onnx, which replaces functions that Flax's scan relies on.
    names: list[str] = []

    def outputs(images: jax.Array) -> list[jax.Array]:
        found = program(weights, images)
        names[:] = sorted(found)
        return [found[name] for name in names]

    traced = jax.make_jaxpr(outputs)(jax.ShapeDtypeStruct(shape, jnp.float32))
    folder.mkdir(parents=True, exist_ok=True)
    to_onnx(
        jax.extend.core.jaxpr_as_fun(traced),
        [shape],
        model_name="adaperceiver",
        return_mode="file",
        output_path=str(folder / ONNX),
        input_names=["images"],
        output_names=names,
    )
    shapes = {name: leaf.shape for name, leaf in zip(names, traced.out_avals, strict=True)}
    _write_about(folder, model, num_tokens, shape, shapes, platforms=["onnx"])
