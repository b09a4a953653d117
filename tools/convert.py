"""Weights from one format to another: PyTorch, the Hugging Face hub, timm, Orbax, our runs.

python tools/convert.py pjajal/adaperceiver-v1-in1k-ft weights/in1k            # from the hub
python tools/convert.py runs/in1k in1k.pth                                     # a run's EMA weights
python tools/convert.py latest_train_epoch_ema.pth weights/stage3 --to orbax   # the reference's
python tools/convert.py weights/in1k small --width 416 --depth 12              # a sub-network

SRC may be a folder with a config.json, a hub id, a timm name, a run's folder, or a .safetensors,
.pth or .pt file. DST must not exist. Nothing is left there unless it passes the check at the end:
every tensor read back and compared, and, where PyTorch is installed, both sides run on one image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax.linen as nn
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.convert.check import (
    BAR,
    different_tensors,
    have_torch,
    not_finite,
    torch_difference,
)
from adaperceiver_jax.convert.describe import for_reference
from adaperceiver_jax.convert.files import (
    PICKLED,
    SAFETENSORS,
    State,
    read_state,
    write_state,
)
from adaperceiver_jax.convert.hub import find_pretrained, save_orbax
from adaperceiver_jax.convert.recognise import ASSUMED
from adaperceiver_jax.convert.whole import check_free, whole
from adaperceiver_jax.tasks.command_line import make_parser, refusals
from adaperceiver_jax.tasks.weights import add_arguments, find_by_arguments

FORMATS = ("hub", "orbax", "torch")
FILES = (*SAFETENSORS, *PICKLED)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="DST", type=Path)
    parser.add_argument(
        "--to",
        choices=FORMATS,
        help="hub: config.json and model.safetensors, for PyTorch and for us; orbax: config.json "
        f"and params/; torch: one file, {', '.join(FILES)} (by DST's ending: torch, else hub)",
    )
    parser.add_argument("--width", type=int, help="export the sub-network of this width")
    parser.add_argument("--depth", type=int, help="export the sub-network of this depth")
    add_arguments(parser)
    return parser.parse_args(arguments)


def check_arguments(options: argparse.Namespace) -> str:
    """The format of DST; ValueError for what cannot be, before anything is read."""
    is_file = options.dst.suffix in FILES
    if not is_file and options.dst.suffix.lower() in (*FILES, ".bin", ".ckpt", ".npz", ".onnx"):
        raise ValueError(f"DST={options.dst}: a file must end in {', '.join(FILES)}")
    to = options.to or ("torch" if is_file else "hub")
    if (to == "torch") != is_file:
        raise ValueError(
            f"DST={options.dst} with --to {to}: "
            + (f"must end in {', '.join(FILES)}" if to == "torch" else "must be a folder's name")
        )
    check_free(options.dst)
    if options.dst.suffix in PICKLED and not have_torch():
        raise ValueError(f"DST={options.dst}: needs PyTorch; .safetensors does not")
    return to


def groups(state: State) -> list[str]:
    """A line per group of tensors: the modules at the top, blocks together."""
    found: dict[str, list[np.ndarray]] = {}
    for name, array in state.items():
        parts = name.split(".")
        depth = 2 if parts[0] in ("backbone", "patch_embed") and len(parts) > 2 else 1
        found.setdefault(".".join(parts[:depth]), []).append(array)
    lines = []
    for name, arrays in found.items():
        dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
        size = sum(array.size for array in arrays)
        lines.append(f"  {name:28s}{len(arrays):5d} tensors {size:13,d} parameters  {dtypes}")
    return lines


def write(model: nn.Module, params: Any, state: State, place: Path, to: str) -> None:
    """Writes one format at `place`."""
    if to == "torch":
        write_state(place, state)
    elif to == "orbax":
        save_orbax(model, params, place)
    else:
        ap.save_pretrained(model, params, place)


def read_back(model: nn.Module, place: Path, to: str) -> State:
    """The written weights, under PyTorch names."""
    if to == "torch":
        return read_state(place)
    found = find_pretrained(place)
    if found.model != model:
        raise ValueError(f"config.json gave back {found.model.config}, not {model.config}")
    return ap.params_to_torch(found.model, found.read())


def describe(model: nn.Module) -> str:
    """'AdaPerceiver, 143.7 M parameters, depth 21, ...'."""
    config = getattr(model.config, "backbone", model.config)
    sizes = [
        f"{name} {getattr(config, attribute)}"
        for name, attribute in (("width", "full_width"), ("depth", "depth"))
        if hasattr(config, attribute)
    ]
    count = ap.count_params(ap.param_shapes(model)) / 1e6
    return ", ".join([type(model).__name__, f"{count:.1f} M parameters", *sizes])


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, cuts, writes next to DST, checks, and moves what was checked to DST."""
    options = read_options(arguments)
    to = check_arguments(options)
    began = time.perf_counter()
    found = find_by_arguments(options.src, options)
    model, params = found.model, found.read()
    print(f"{options.src}: {describe(model)}; nothing missing, nothing left over")
    config = getattr(model.config, "backbone", model.config)
    guessed = Path(options.src).is_file() and not options.model
    if guessed and isinstance(config, ap.AdaPerceiverConfig):
        some = ", ".join(f"{name}={getattr(config, name)}" for name in ASSUMED)
        print(f"  no tensor tells these, so the paper's are taken (else give --model): {some}")
    if options.width is not None or options.depth is not None:
        model, params = ap.extract(model, params, options.width, options.depth)
        print(f"cut to {describe(model)}")
    if to != "orbax":
        model, unsaid = for_reference(model)
        if unsaid:
            print(f"  loads here, but not in the reference: its constructor cannot say {unsaid}")
    state = ap.params_to_torch(model, params)
    print("\n".join(groups(state)))
    if bad := not_finite(state):
        raise ValueError(f"{options.src}: not finite: {', '.join(bad[:8])} ({len(bad)} in all)")
    if to == "orbax" and any(array.dtype == np.float64 for array in state.values()):
        raise ValueError(f"{options.src}: holds float64, which JAX arrays are not; give --to hub")

    with whole(options.dst) as place:
        write(model, params, state, place, to)
        written = read_back(model, place, to)
        different = different_tensors(state, written)
        if different:
            raise ValueError(f"not written as read: {', '.join(different[:8])}; nothing is kept")
        text = f"all {len(state)} tensors read back the same"
        if have_torch():
            error = torch_difference(model, params, written)
            text += f"; in PyTorch the same outputs to {error:.1e} of the largest"
            if not error <= BAR:
                raise ValueError(f"{text}, above {BAR}; nothing is kept")
        else:
            text += "; PyTorch is not installed, so it was not run there"
    print(f"{options.dst} ({to}): {text}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
