"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def check_free(path: Path) -> None:
    """Raises ValueError unless `path` can be made: nothing is there, or an empty folder."""
    if not path.name:
        raise ValueError(f"{path}: not the name of a file or folder")
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path}: is there already; move it away or name another")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file or folder, moved to `path` if no error was raised.

    SIGTERM and SIGHUP end the program, but leave nothing of it behind; SIGKILL leaves the folder
    `.NAME.*` that the place is in.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _signals_raise(),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
    ):
        place = Path(folder) / path.name
        yield place
        if path.is_dir():
            path.rmdir()  # empty
        place.rename(path)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SystemExit instead of an end on the spot, where that is this thread's to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written beside its place and moves it there, so that no half is ever seen."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes content that is at hand, as `write_whole` does."""
    write_whole(path, lambda to: to.write_bytes(content))
