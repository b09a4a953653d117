"""Runs the notebooks of this folder from their first cell to their last, in this checkout.

python -m experiments.colab.run                      # all; what they gave goes to runs/colab
python -m experiments.colab.run quick_tour --write   # one; what it gave is kept in the notebook

What an earlier run of a notebook left in runs/colab is deleted first. Fails where a cell fails
(cells assert what is the same on every machine), a notebook takes more than five minutes, or its
cells give another kind of output than those kept in it: a text or a picture more or less.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NAMES = ("quick_tour", "adaptivity", "training", "pytorch", "components")
"""All notebooks, in the order they are meant to be read."""
LEFT = ROOT / "runs" / "colab"
"""Where notebooks write, each below its name."""
SECONDS = 300
COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""Colours of a traceback in a terminal."""


def execute(notebook: Any, seconds: float) -> float:
    """Runs all cells, in the repository, within so many seconds; gives how many it took."""
    began = time.monotonic()
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": ROOT}})
    client.create_kernel_manager()
    client.km.transport = "ipc"
    client.reset_execution_trackers()
    with client.setup_kernel():
        for i, cell in enumerate(notebook.cells):
            client.timeout = max(1, round(seconds - (time.monotonic() - began)))
            client.execute_cell(cell, i)
    return time.monotonic() - began


def kinds(notebook: Any) -> list[list[str]]:
    """A list a cell: 'text', 'picture' or 'value' for each thing it gave, neighbours of a kind as
    one."""
    found = []
    for cell in notebook.cells:
        kinds: list[str] = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = "picture" if "image/png" in data else "value" if data else "text"
            if not kinds or kinds[-1] != kind:
                kinds.append(kind)
        found.append(kinds)
    return found


def clean(notebook: Any) -> None:
    """Leaves out when cells ran, and warnings that this machine's libraries gave; joins the pieces
    that a text came in."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept: list[Any] = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
                kept[-1].text += output.text
            else:
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


def run(name: str, write: bool, out: Path) -> None:
    """One notebook; exits with a line that says what is wrong."""
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    before = kinds(notebook)
    print(f"{name} ...", flush=True)
    shutil.rmtree(LEFT / name, ignore_errors=True)  # else training would go on, and be at its end
    try:
        seconds = execute(notebook, SECONDS)
    except CellTimeoutError as error:
        sys.exit(f"{path}: takes more than {SECONDS} seconds: {error}")
    except CellExecutionError as error:
        sys.exit(f"{path}: {COLOURS.sub('', str(error))}")
    clean(notebook)
    out.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path if write else out / path.name)
    after = kinds(notebook)
    if not write and after != before:
        cell = next(i for i, each in enumerate(after) if each != before[i])
        sys.exit(
            f"{path}: cell {cell} gave {after[cell]}, kept in it is {before[cell]}; if that is as "
            f"it should be: python -m experiments.colab.run {name} --write"
        )
    pictures = sum(each.count("picture") for each in after)
    print(f"{name}: {seconds:.0f} s, {pictures} cells with pictures", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", default=NAMES, help="(all)")
    write = "keeps what cells gave in the notebooks themselves"
    parser.add_argument("--write", action="store_true", help=write)
    parser.add_argument("--out", type=Path, default=LEFT, metavar="DIR")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"NAME={name}: must be one of {', '.join(NAMES)}")
    for name in options.names:
        run(name, options.write, options.out)


if __name__ == "__main__":
    main()
