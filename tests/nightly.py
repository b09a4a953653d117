"""Runs the expensive checks whose files changed since they last passed.

python -m tests.nightly                  # the groups that are out of date
python -m tests.nightly pods pytorch     # these, whether or not they are
python -m tests.nightly --all

A group is either the tests marked `nightly(group=NAME)` or one notebook of experiments/colab. Each
covers files: those that its patterns name and, for a notebook, all that it imports from this
repository, directly or through others. When a group passes, a digest of its files is written to
tests/nightly.json, which is committed with the change. A group is out of date when the digest of
its files is not the one written there.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PASSED = ROOT / "tests" / "nightly.json"
PACKAGE = "adaperceiver_jax"
TESTS: dict[str, tuple[str, ...]] = {
    "pods": (
        *("tools/pod_report/*.py", "tools/compile_for_tpu.py", "docs/pods.md", "configs/*.py"),
        *("tests/tools/pod_report/*.py", "tests/tools/test_pods_page.py"),
        "tests/tools/test_compile_for_tpu.py",
        *(f"{PACKAGE}/train/{name}.py" for name in ("chips", "step", "sharding")),
        *(f"{PACKAGE}/{room}/*.py" for room in ("models", "optim", "tasks")),
        "tools/shapes.py",
    ),
    "processes": (
        *("tests/train/*.py", "tests/optim/*.py", "tests/tasks/test_processes.py"),
        "tests/processes.py",
        *(f"{PACKAGE}/{name}.py" for name in ("data/pipeline", "tasks/dense_sweep")),
        *(f"{PACKAGE}/train/*.py", f"{PACKAGE}/optim/*.py", f"{PACKAGE}/tasks/segment.py"),
    ),
    "configs": (
        *("configs/*.py", f"{PACKAGE}/tasks/*.py", f"{PACKAGE}/train/settings.py"),
        *("tests/train/test_configs.py", "tests/train/small.py"),
    ),
    "counts": (
        *(f"{PACKAGE}/models/*.py", f"{PACKAGE}/tasks/*.py", f"{PACKAGE}/evaluate/flops.py"),
        *("tests/tasks/test_costs.py", "tests/models/test_properties.py"),
        *(f"{PACKAGE}/train/step.py", "tests/experiments/test_readout_cost.py"),
    ),
    "experiments": ("experiments/**/*.py", "tests/experiments/*.py"),
    "tools": (
        *("tools/*.py", "configs/*.py", "setup.py", "pyproject.toml", "experiments/colab/*.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("evaluate", "convert", "policies", "tasks")),
        *("tests/tools/*.py", "tests/test_package.py", "tests/test_notebooks.py"),
    ),
    "contributing": (
        *("docs/contributing.md", "tests/test_contributing.py", "configs/*.py", "main.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("tasks", "policies", "data")),
        f"{PACKAGE}/models/dense*.py",
    ),
}
"""Patterns of the files that each group of tests covers."""
NOTEBOOKS = ("quick_tour", "adaptivity", "training", "pytorch", "components")
COLAB = "experiments/colab"


def groups() -> list[str]:
    """Names of all groups."""
    return [*TESTS, *NOTEBOOKS]


def covered(group: str) -> list[Path]:
    """Files of a group, sorted."""
    if group in NOTEBOOKS:
        return notebook_files(group)
    found = {path for pattern in TESTS[group] for path in ROOT.glob(pattern)}
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def notebook_files(name: str) -> list[Path]:
    """A notebook, the script that runs it, and the files that its code names or imports."""
    path = ROOT / COLAB / f"{name}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    named = {ROOT / text for text in re.findall(r"[\w/]+\.(?:py|csv|json)", code)}
    first = {p for p in (*named, ROOT / COLAB / "run.py", ROOT / "setup.py") if p.is_file()}
    weights = {p for p in (ROOT / COLAB / "weights").rglob("*") if p.is_file()}
    return sorted({path, *weights, *closure(first | set(imported(code)))})


def closure(files: Iterable[Path]) -> set[Path]:
    """These files and all of this repository that they import, directly or through others."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported(path.read_text()) if path.suffix == ".py" else []
    return found


def imported(code: str) -> list[Path]:
    """Files of this repository that Python code imports; line magics are passed over."""
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, 6)}
    places = [ROOT / part.replace(".", "/") for part in parts]
    files = [p.with_suffix(".py") for p in places] + [p / "__init__.py" for p in places]
    return [path for path in files if path.is_file()]


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of the files' names and bytes."""
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return total.hexdigest()


def passed() -> dict[str, str]:
    """Digest of each group's files when it last passed."""
    return json.loads(PASSED.read_text()) if PASSED.exists() else {}


def out_of_date() -> list[str]:
    """Groups whose files are not those that last passed."""
    before = passed()
    return [group for group in groups() if before.get(group) != digest(covered(group))]


def command(group: str) -> list[str]:
    """The command that runs a group."""
    if group in NOTEBOOKS:
        return [sys.executable, "-m", "experiments.colab.run", group]
    chosen = f'nightly(group="{group}")'
    return [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", "-m", chosen]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", metavar="GROUP", nargs="*", help="(those out of date)")
    parser.add_argument("--all", action="store_true", help="all groups")
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(groups()):
        parser.error(f"GROUP={unknown.pop()}: must be one of {', '.join(groups())}")
    chosen = groups() if options.all else options.groups or out_of_date()
    print(f"to run: {', '.join(chosen) or 'nothing, all groups passed with the files as they are'}")
    failed = []
    for group in chosen:
        print(f"== {group}", flush=True)
        before = digest(covered(group))
        if subprocess.run(command(group), cwd=ROOT).returncode:
            failed.append(group)
        else:
            PASSED.write_text(
                json.dumps({**passed(), group: before}, indent=2, sort_keys=True) + "\n"
            )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
