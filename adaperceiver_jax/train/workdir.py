"""A run's folder: what stands in it, and that it can be one, before anything is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from adaperceiver_jax.train.processes import wait_for_all
from adaperceiver_jax.train.settings import Settings
from adaperceiver_jax.train.sharding import describe

log = logging.getLogger(__name__)

CONFIG = "config.json"
SHARDINGS = "shardings.txt"
MODEL = "model"
"""The folder of the finished weights."""


def find_workdir(workdir: str | os.PathLike) -> Path:
    """The folder, which need not be there yet; ValueError for an address such as gs://..."""
    if "://" in os.fspath(workdir):
        raise ValueError(
            f"--workdir={os.fspath(workdir)}: must be a folder; mount the bucket on every host "
            "and give its folder (docs/pods.md)"
        )
    return Path(workdir)


def check_workdir(workdir: Path) -> None:
    """Makes it; ValueError, on all processes alike, unless a run can be there."""
    check_shared(workdir)
    if jax.process_index() == 0:
        check_renaming(workdir)
    wait_for_all("the run's folder, tried")


def check_renaming(workdir: Path) -> None:
    """ValueError unless folders can be renamed there, as a checkpoint is when it is whole."""
    before, after = (workdir / f".renamed-{name}" for name in ("before", "after"))
    try:
        for folder in (before, after):
            shutil.rmtree(folder, ignore_errors=True)
        before.mkdir(parents=True)
        (before / "file").write_text("whole")
        before.rename(after)
        whole = (after / "file").read_text() == "whole"
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir}: no folder can be renamed there ({error}), which is how a "
            "checkpoint comes to be whole; a bucket that gcsfuse mounts needs --rename-dir-limit "
            "(docs/pods.md)"
        ) from error
    finally:
        for folder in (before, after):
            shutil.rmtree(folder, ignore_errors=True)
    if not whole:
        raise ValueError(f"--workdir={workdir}: a file that was written there is not read back")


def check_shared(workdir: Path) -> None:
    """ValueError unless each process can write there what all others see."""
    mine = workdir / f".process-{jax.process_index()}-{secrets.token_hex(4)}"
    try:
        try:
            mine.parent.mkdir(parents=True, exist_ok=True)
            mine.write_text("here")
        except OSError as error:
            raise ValueError(f"--workdir={workdir}: cannot be written to ({error})") from error
        for index, name in enumerate(wait_for_all("the run's folder", mine.name)):
            if not (workdir / name).exists():
                raise ValueError(
                    f"--workdir={workdir}: what process {index} writes there is not seen here; "
                    "take a folder that all hosts share"
                )
        wait_for_all("the run's folder, seen")
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()


def describe_run(workdir: Path, settings: Settings, arrays: Any, resumed: bool) -> None:
    """Writes `config.json` and `shardings.txt`, from the first process.

    resumed: settings that an earlier call had otherwise are named in warnings.
    """
    if jax.process_index() > 0:
        return
    values, path = dataclasses.asdict(settings), workdir / CONFIG
    if resumed and path.exists():
        before = flatten_dict(json.loads(path.read_text()), sep=".")
        now = flatten_dict(json.loads(json.dumps(values)), sep=".")
        for name, value in now.items():
            if name in before and before[name] != value:
                log.warning("config.%s was %r before and is %r now", name, before[name], value)
    _write(path, json.dumps(values, indent=2))
    _write(workdir / SHARDINGS, describe(arrays))


def _write(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
