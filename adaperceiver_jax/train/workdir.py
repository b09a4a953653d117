"""A run's folder: that it can be one is known before anything is compiled."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import jax

from adaperceiver_jax.train.processes import wait_for_all


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
