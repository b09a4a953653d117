"""Brings what a notebook needs: this package with what it stands on, for the device that is here.

Each notebook's first cell finds or fetches the repository and calls `set_up`.
"""

from __future__ import annotations

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
NAME = "adaperceiver_jax"
LOADED_EARLY = {"PIL": "pillow", "matplotlib": "matplotlib", "numpy": "numpy"}
"""Modules that a notebook's kernel may have loaded before anything was installed."""


def set_up() -> None:
    """Installs the package if it is not there, and says what will compute."""
    try:
        importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
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
    version = re.search(r"CUDA Version: (\d+)", nvidia)
    if version is None:
        return ""
    return "cuda" if int(version[1]) >= 13 else "cuda12"


def nvidia_smi() -> str:
    """What it prints; '' where there is none, or it finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return ""
    done = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def has_tpu() -> bool:
    """Whether this machine is a TPU's host."""
    return "TPU_ACCELERATOR_TYPE" in os.environ or any(Path("/dev").glob("accel[0-9]*"))


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
