"""A run's folder: that it can be one is known before anything is compiled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def find_workdir(workdir: str | os.PathLike) -> Path:
    """The folder, which need not be there yet; ValueError for an address such as gs://..."""
    if "://" in os.fspath(workdir):
        raise ValueError(
            f"--workdir={os.fspath(workdir)}: must be a folder; mount the bucket on every host "
            "and give its folder (docs/pods.md)"
        )
    return Path(workdir)


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
