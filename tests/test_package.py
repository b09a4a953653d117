"""The package as a whole: what importing and installing it brings, and which way imports point."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaperceiver_jax"
ROOMS = {  # what each room may import
    "models": {"models"},
    "losses": {"losses"},
    "convert": {"convert", "models"},
    "evaluate": {"evaluate", "models"},
}


def test_a_plain_install_brings_no_tensorflow_and_no_pytorch():
    found, waiting = set(), ["adaperceiver_jax"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    assert {"jax", "flax", "optax", "grain", "orbax-checkpoint"} <= found
    assert not found & {"tensorflow", "tensorflow-cpu", "torch", "timm", "torchvision"}


def test_importing_it_says_nothing_and_loads_neither():
    code = (
        "import sys, adaperceiver_jax as ap\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
        "missing = [name for name in ap.__all__ if not hasattr(ap, name)]\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def imports(file: Path) -> set[str]:
    """The rooms of the package that a file imports."""
    tree = ast.parse(file.read_text())
    names = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    return {name.split(".")[1] for name in names if name.startswith("adaperceiver_jax.")}


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_imports_point_one_way(room):
    for file in (PACKAGE / room).rglob("*.py"):
        assert imports(file) <= ROOMS[room], file


def test_the_demo_runs_and_refuses_what_is_not_there():
    def demo(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tools" / "demo.py", *arguments], capture_output=True, text=True
        )

    assert "--tokens" in demo("--help").stdout
    done = demo("--widths", "900")
    assert done.returncode == 2
    assert "width=900: must be in 1..832" in done.stderr
    done = demo("--tokens", "8", "--widths", "416", "--depths", "1", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "143.7 M parameters" in done.stdout
    assert re.search(r"^ +8 +416 +1 +\d+\.\d +\d+\.\d +\d+\.\d$", done.stdout, re.MULTILINE)
