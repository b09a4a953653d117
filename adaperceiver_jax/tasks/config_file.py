"""A config as a command line names it: a file, and an argument for it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config


def read_config(text: str) -> RunConfig:
    """'configs/NAME.py:key=value' -> the run's config; ValueError for what is wrong with it."""
    name, _, argument = text.partition(":")
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--config={text}: there is no such file; give one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    root = str(path.parent.parent)  # configs import each other
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "get_config"):
            return from_config(RunConfig, module.get_config(argument).to_dict())
    except Exception as error:
        raise ValueError(f"--config={text}: {_mistake(error, path)}") from error
    raise ValueError(f"--config={text}: is no config, since it has no get_config")


def _mistake(error: Exception, path: Path) -> str:
    """What is wrong with a config, and in which line of it where it is a mistake of its code."""
    if isinstance(error, ValueError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    said = str(error)
    if isinstance(error, SyntaxError):
        said, lines = error.msg, [error.lineno]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {said}"
