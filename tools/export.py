"""One sub-network with its weights as a program of its own: StableHLO for JAX, or ONNX.

python tools/export.py weights/in1k served --num-tokens 128 --width 624 --depth 12
python tools/export.py weights/in1k small --to onnx --num-tokens 128 --depth 12 --batch 8

CKPT is whatever tools/convert.py reads. OUT is a folder. StableHLO is run by JAX alone:

    import jax.export, numpy as np
    program = jax.export.deserialize(bytearray(open("served/program.jax", "rb").read()))
    out = program.call(dict(np.load("served/weights.npz")), images)    # {"logits": (B, classes)}

(pip install jax flatbuffers); ONNX, small/model.onnx, by any runtime. Images are (B, H, W, C),
normalised, of the model's own size. What was written is run and compared with the model, and left
at OUT only if both agree; where it cannot be run (--platforms without this machine's, ONNX without
onnxruntime) the last line says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax.linen as nn
import jax
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.convert.check import relative_difference
from adaperceiver_jax.convert.export import (
    DYNAMIC,
    ONNX,
    PLATFORMS,
    call_program,
    save_onnx,
    save_program,
)
from adaperceiver_jax.convert.whole import check_free, whole
from adaperceiver_jax.models.dense import DenseModel
from adaperceiver_jax.tasks.command_line import make_parser, refusals
from adaperceiver_jax.tasks.weights import add_arguments, find_by_arguments

BARS = {"stablehlo": 1e-5, "onnx": 1e-4}
"""Largest difference to the model, as a part of the largest output."""
SIZES = ("num_tokens", "width", "depth")


def batch_size(text: str) -> int | str:
    """'8' -> 8; 'dynamic'."""
    if text == DYNAMIC:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at least 1, or {DYNAMIC!r}")
    return int(text)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("ckpt", metavar="CKPT")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--to", choices=tuple(BARS), default="stablehlo", help="(%(default)s)")
    parser.add_argument("--num-tokens", type=int, help="latents (all)")
    parser.add_argument("--width", type=int, help="width (the full one)")
    parser.add_argument("--depth", type=int, help="depth (all blocks)")
    parser.add_argument(
        "--batch", type=batch_size, help=f"images a call, or {DYNAMIC} ({DYNAMIC}; ONNX: 1)"
    )
    parser.add_argument(
        "--platforms",
        default=",".join(PLATFORMS),
        help="what StableHLO can be compiled for (%(default)s)",
    )
    add_arguments(parser)
    return parser.parse_args(arguments)


def check_arguments(options: argparse.Namespace) -> None:
    """ValueError for what cannot be, before anything is read."""
    check_free(options.out)
    options.platforms = options.platforms.split(",")
    unknown = [name for name in options.platforms if name not in PLATFORMS]
    if unknown:
        raise ValueError(f"--platforms={unknown[0]}: must be some of {', '.join(PLATFORMS)}")
    onnx = options.to == "onnx"
    if onnx and options.batch == DYNAMIC:
        raise ValueError(f"--batch={DYNAMIC}: an ONNX file is made for one size; give a number")
    options.batch = options.batch or (1 if onnx else DYNAMIC)


def sub_network(
    model: nn.Module, params: Any, options: argparse.Namespace
) -> tuple[nn.Module, Any]:
    """The model cut to its width and depth; ValueError if it cannot be, or has no such tokens."""
    if isinstance(model, ap.AdaPerceiver | DenseModel):
        if options.num_tokens is not None and options.num_tokens < 1:
            raise ValueError(f"num_tokens={options.num_tokens}: must be at least 1")
        return ap.extract(model, params, options.width, options.depth)
    for name in SIZES:
        if getattr(options, name) is not None:
            raise ValueError(f"{name}={getattr(options, name)}: a {type(model).__name__} has none")
    return model, params


def run_onnx(path: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name, from onnxruntime; none if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": inputs}), strict=True))


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, cuts, writes next to OUT, runs what was written, and moves it to OUT."""
    options = read_options(arguments)
    check_arguments(options)
    found = find_by_arguments(options.ckpt, options)
    whole_model, whole_params = found.model, found.read()
    model, params = sub_network(whole_model, whole_params, options)
    chosen = {name: getattr(options, name) for name in SIZES if getattr(options, name)}
    count = 1 if options.batch == DYNAMIC else options.batch
    shape = (count, *model.example_inputs().shape[1:])
    inputs = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    call = jax.jit(lambda params, x: whole_model.apply({"params": params}, x, **chosen))
    outputs = vars(call(whole_params, inputs))
    want = {name: value for name, value in outputs.items() if value is not None}
    got: Mapping[str, Any]
    with whole(options.out) as place:
        if options.to == "onnx":
            save_onnx(model, params, place, num_tokens=options.num_tokens, batch=count)
            got = run_onnx(place / ONNX, inputs)
        else:
            how = {name: getattr(options, name) for name in ("num_tokens", "batch", "platforms")}
            save_program(model, params, place, **how)
            here = jax.default_backend().replace("gpu", "cuda")
            got = call_program(place, inputs) if here in options.platforms else {}
        error = max((relative_difference(got[name], want[name]) for name in got), default=None)
        if error is not None and not error <= BARS[options.to]:
            raise ValueError(f"its outputs differ by {error:.1e} of the largest; nothing is kept")
    said = f"outputs to {error:.1e} of the largest" if got else "NOT run here, so not compared"
    sizes = " x ".join(map(str, (options.batch, *shape[1:])))
    print(f"{options.out} ({options.to}): images {sizes} -> {', '.join(want)}; {said}")


if __name__ == "__main__":
    main()
