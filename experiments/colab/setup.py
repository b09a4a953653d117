"""Brings what a notebook needs: this package with what it stands on, for the device that is here.

Each notebook's first cell finds or fetches the repository and calls `set_up`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LOADED_EARLY = {"PIL": "pillow", "matplotlib": "matplotlib", "numpy": "numpy"}
"""Modules that a notebook's kernel may have loaded before anything was installed."""


def set_up() -> None:
    """Installs what the package needs where it is not there, and says what will compute."""
    if unmet(requirements()):
        install(extra_for(nvidia_smi(), has_tpu()))
    if stale := outdated(sys.modules.values()):
        raise RuntimeError(
            f"{', '.join(stale)}: this session has loaded an older version than the one installed "
            "now; restart it (Runtime > Restart session) and run the notebook again"
        )
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, of bars as widgets
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # of Orbax, which warns that reading is read only
    device = jax.devices()[0]
    print(f"JAX {jax.__version__} on {jax.device_count()} x {device.device_kind}")


def requirements() -> list[str]:
    """Those of a plain install, as setup.py has them: the package itself may be on the path without
    being installed, and what it needs may be there in another version."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RUNTIME":
            return ast.literal_eval(node.value)
    raise RuntimeError(f"{ROOT / 'setup.py'}: has no RUNTIME")


def unmet(lines: Iterable[str]) -> list[str]:
    """The requirements that are not met here; all of them where nothing can tell."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [*lines]
    found = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(line)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(line)
    return found


def install(extra: str) -> None:
    """By pip, from the repository that this file lies in."""
    what = f"{ROOT}[{extra}]" if extra else str(ROOT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", what]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(pip)}:\n{done.stderr.strip()}")


def extra_for(nvidia: str, tpu: bool) -> str:
    """The extra of setup.py for a device: nvidia is what `nvidia-smi` prints, '' without one."""
    if tpu:
        return "tpu"
    if not nvidia:
        return ""
    version = re.search(r"CUDA Version: (\d+)", nvidia)
    return "cuda12" if version and int(version[1]) < 13 else "cuda"


def nvidia_smi() -> str:
    """Output of nvidia-smi; '' where there is none, or it finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def has_tpu() -> bool:
    """True on the host of a TPU."""
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return "TPU_ACCELERATOR_TYPE" in os.environ or (bool(devices) and not nvidia_smi())


def outdated(modules: Iterable[ModuleType]) -> list[str]:
    """Those of LOADED_EARLY whose loaded version is not the installed one."""
    found = []
    for module in [*modules]:
        project = LOADED_EARLY.get(getattr(module, "__name__", ""))
        if project is None:
            continue
        try:
            installed = importlib.metadata.version(project)
        except importlib.metadata.PackageNotFoundError:
            continue
        if getattr(module, "__version__", installed) != installed:
            found.append(project)
    return sorted(found)
