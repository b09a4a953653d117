"""Runs the expensive checks whose files changed since they last passed.

python -m tests.nightly                  # the groups that are out of date
python -m tests.nightly pods pytorch     # these, whether or not they are
python -m tests.nightly --all            # before a release

A group is either the tests marked `nightly(group=NAME)` or one notebook of experiments/colab. Each
covers files. A notebook covers all that it imports from this repository, directly or through
others. Tests cover all that they import outside the package, directly or through others; the
modules of the package that any of these imports itself; and what the patterns below name, since
programs that a test starts are not imports. What those modules stand on is left to the other tests,
which run for every change: a fault there that only a nightly test would show is found by --all.

When a group passes, and none of its tests was skipped, a digest of its files is written to
tests/nightly.json, which is committed with the change. A group is out of date when the digest of
its files is not the one written there. It knows nothing of the versions that are installed, but for
their ranges in setup.py.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PASSED = ROOT / "tests" / "nightly.json"
PACKAGE = "adaperceiver_jax"
TESTS: dict[str, tuple[str, ...]] = {
    "pods": (
        *("tools/pod_report/*.py", "docs/pods.md", "configs/*.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("losses", "models", "optim", "tasks")),
        *(f"{PACKAGE}/{name}.py" for name in ("data/mixing", "evaluate/flops")),
    ),
    "processes": (
        *("main.py", "tests/train/killed.py", "configs/*.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("optim", "train")),
        *(f"{PACKAGE}/{name}.py" for name in ("data/pipeline", "data/loading", "convert/hub")),
        *(f"{PACKAGE}/tasks/{name}.py" for name in ("segment", "dense_sweep")),
    ),
    "configs": ("configs/*.py", f"{PACKAGE}/tasks/*.py"),
    "counts": (f"{PACKAGE}/models/*.py", f"{PACKAGE}/tasks/*.py"),
    "experiments": (),
    "tools": (
        *("main.py", "pyproject.toml", "MANIFEST.in", "README.md", "tools/*.py"),
        *("configs/*.py", "experiments/colab/*.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("evaluate", "convert", "policies", "tasks")),
    ),
    "contributing": (
        *("docs/contributing.md", "configs/*.py", "main.py", f"{PACKAGE}/models/dense*.py"),
        *(f"{PACKAGE}/{room}/*.py" for room in ("tasks", "policies", "data")),
        *(f"{PACKAGE}/{name}.py" for name in ("convert/names", "evaluate/flops", "train/loop")),
    ),
}
"""Groups of tests, and patterns of the files that they cover beside what they import."""
NOTEBOOKS = ("quick_tour", "adaptivity", "training", "pytorch", "components")
COLAB = "experiments/colab"


def groups() -> list[str]:
    """Names of all groups."""
    return [*TESTS, *NOTEBOOKS]


def covered(group: str) -> list[Path]:
    """Files of a group, sorted."""
    if group in NOTEBOOKS:
        return notebook_files(group)
    mark = f'nightly(group="{group}")'
    files = {path for path in ROOT.glob("tests/**/*.py") if mark in path.read_text()}
    shared = {folder / "conftest.py" for path in files for folder in path.parents}
    first = {*files, *(path for path in shared if path.is_file()), ROOT / "setup.py"}
    found = closure(first, outside)
    found |= {path for pattern in TESTS[group] for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(found - {Path(__file__)})


def outside(path: Path) -> bool:
    """Whether a file is not the package's."""
    return path.relative_to(ROOT).parts[0] != PACKAGE


def notebook_files(name: str) -> list[Path]:
    """A notebook, the script that runs it, and the files that its code names or imports."""
    path = ROOT / COLAB / f"{name}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    named = {ROOT / text for text in re.findall(r"[\w/]+\.(?:py|csv|json)", code)}
    first = {p for p in (*named, ROOT / COLAB / "run.py", ROOT / "setup.py") if p.is_file()}
    weights = {p for p in (ROOT / COLAB / "weights").rglob("*") if p.is_file()}
    return sorted({path, *weights, *closure(first | set(imported(code)))})


def closure(
    files: Iterable[Path], through: Callable[[Path], bool] = lambda path: True
) -> set[Path]:
    """These files and all of this repository that they import, directly or through others, of which
    `through` says that their imports count."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            follow = path.suffix == ".py" and through(path)
            waiting += imported(path.read_text()) if follow else []
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


def run(group: str) -> bool:
    """Whether a group passes, with none of its tests skipped."""
    if group in NOTEBOOKS:
        command = [sys.executable, "-m", "experiments.colab.run", group]
        return subprocess.run(command, cwd=ROOT).returncode == 0
    chosen = f'nightly(group="{group}")'
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        options = ["-q", "-rs", "-n", "auto", "--dist", "loadfile", f"--junit-xml={report.name}"]
        command = [sys.executable, "-m", "pytest", *options, "-m", chosen]
        fine = subprocess.run(command, cwd=ROOT).returncode == 0
        if fine and (skipped := ElementTree.parse(report.name).findall(".//skipped")):
            print(f"{group}: {len(skipped)} tests were skipped, so it has not passed")
            return False
    return fine


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
        if run(group):
            found = {name: value for name, value in passed().items() if name in groups()}
            text = json.dumps({**found, group: before}, indent=2, sort_keys=True)
            PASSED.write_text(f"{text}\n")
        else:
            failed.append(group)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
