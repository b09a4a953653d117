"""The paper's full-size model through every format and back, in under a minute and 4 GB each.

python -m experiments.convert_full_size.run        # some 2 minutes on 2 cores, 4 GB of disk

Writes the model (143.7 M parameters, made-up weights) as a hub folder, then runs tools/convert.py
as a user would: hub -> Orbax -> .pth -> .safetensors -> hub, and cut to a sub-network. Each is a
process of its own, whose seconds and largest memory are printed; it ends with the tool's own check,
in PyTorch too where that is installed. Exits with 1 if one took over a minute or 4 GB (1e9 bytes),
or if what comes back at the end is not the same to the byte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

import adaperceiver_jax as ap

SECONDS, BYTES = 60, 4e9
TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert.py"
STEPS = (
    ("hub", "orbax", ("--to", "orbax")),
    ("orbax", "weights.pth", ()),
    ("weights.pth", "orbax_again", ("--to", "orbax")),
    ("weights.pth", "weights.safetensors", ()),
    ("weights.safetensors", "again", ()),
    ("hub", "small", ("--width", "416", "--depth", "12")),
)


def run(source: Path, target: Path, options: Sequence[str]) -> tuple[float, float, str]:
    """Seconds, bytes and the last line of one conversion; SystemExit if it failed."""
    command = [sys.executable, str(TOOL), str(source), str(target), *options]
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        said.seek(0)
        lines = said.read().strip().splitlines()
    if status:
        sys.exit("\n".join(lines))
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit, lines[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", help="where 4 GB may lie for a while (the system's)")
    options = parser.parse_args(arguments)
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig())
    good = True
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        root = Path(folder)
        ap.save_pretrained(model, ap.init_params(model, jax.random.key(0)), root / "hub")
        print("| from | to | seconds | GB | its check |\n|---|---|---|---|---|")
        for source, target, more in STEPS:
            seconds, held, said = run(root / source, root / target, more)
            check = said.partition("): ")[2].rpartition(";")[0]
            what = " ".join([target, *(m for m in more if m not in ("--to", "orbax"))])
            print(f"| {source} | {what} | {seconds:.0f} | {held / 1e9:.2f} | {check} |", flush=True)
            good &= seconds < SECONDS and held < BYTES
        for file in ("config.json", "model.safetensors"):
            same = (root / "hub" / file).read_bytes() == (root / "again" / file).read_bytes()
            print(f"\n{file} after hub -> orbax -> .pth -> .safetensors -> hub: ", end="")
            print("the same to the byte" if same else "NOT the same")
            good &= same
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
