"""Files here or in a bucket (gs://, s3://, ...): listed by a pattern, read in part."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections.abc import Iterator

import fsspec
import numpy as np

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """True for a path that only fsspec reads."""
    return "://" in path


def join(folder: str, path: str) -> str:
    """`path` in a folder, or as it is if it is whole or the folder is ''."""
    if not folder or is_remote(path) or os.path.isabs(path):
        return path
    return f"{folder.rstrip('/')}/{path}"


def expand(pattern: str) -> list[str]:
    """The files of a pattern, sorted: `*`, `?`, `[a-c]`, `{a,b}` and `{000..127}`.

    FileNotFoundError if there is none, or not all that braces name.
    """
    files: list[str] = []
    for one in _without_braces(pattern):
        found = _glob(one)
        if not found:
            raise FileNotFoundError(f"{one}: there is no such file")
        files += found
    return sorted(dict.fromkeys(files))


def _without_braces(pattern: str) -> list[str]:
    pieces = _BRACES.split(pattern)
    choices = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            choices.append([piece])
        elif found := _RANGE.fullmatch(piece):
            first, last = found.groups()
            numbers = range(int(first), int(last) + 1)
            choices.append([f"{n:0{len(first)}d}" for n in numbers])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        system, path = fsspec.core.url_to_fs(pattern)
        return [system.unstrip_protocol(name) for name in system.glob(path)]
    return glob.glob(os.path.expanduser(pattern))


def size_and_time(path: str) -> tuple[int, str]:
    """A file's number of bytes, and a stamp that changes when it is written again."""
    if is_remote(path):
        system, name = fsspec.core.url_to_fs(path)
        info = system.info(name)
        stamp = info.get("mtime") or info.get("updated") or info.get("LastModified") or ""
        return int(info["size"]), str(stamp)
    status = os.stat(path)
    return status.st_size, str(status.st_mtime_ns)


def is_folder(path: str) -> bool:
    """True if there is a folder of that name."""
    system, name = fsspec.core.url_to_fs(path)
    return bool(system.isdir(name))


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
    """A file, or `size` bytes of it from `start` on."""
    if is_remote(path):
        system, name = fsspec.core.url_to_fs(path)
        return system.cat_file(name, start=start, end=None if size is None else start + size)
    with open(os.path.expanduser(path), "rb") as file:
        file.seek(start)
        return file.read() if size is None else file.read(size)


def folders(path: str) -> list[str]:
    """The names of the folders in a folder, sorted."""
    if is_remote(path):
        system, name = fsspec.core.url_to_fs(path)
        found = system.ls(name, detail=True)
        return sorted(
            x["name"].rstrip("/").rpartition("/")[2] for x in found if x["type"] == "directory"
        )
    with os.scandir(os.path.expanduser(path)) as entries:
        return sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))


def files_below(path: str) -> list[str]:
    """The paths of all files in a folder and its folders, from it on, sorted."""
    if is_remote(path):
        system, name = fsspec.core.url_to_fs(path)
        return sorted(found.removeprefix(name).lstrip("/") for found in system.find(name))
    return sorted(_below(os.path.expanduser(path), ""))


def _below(root: str, inside: str) -> Iterator[str]:
    here = os.path.join(root, inside)
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{inside}{entry.name}"
            if not entry.is_dir():
                yield name
                continue
            target = os.path.realpath(entry.path)
            if entry.is_symlink() and f"{os.path.realpath(here)}/".startswith(f"{target}/"):
                raise ValueError(f"{entry.path}: is a link to a folder that it is in; take it away")
            yield from _below(root, f"{name}/")


def allow_many_files() -> None:
    """Raises the limit on open files as far as this process may."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a limit below the one it names
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Names:
    """Many strings in two arrays: millions of paths that copy quickly to other processes."""

    def __init__(self, names: list[str]) -> None:
        encoded = [os.fsencode(name) for name in names]  # of any characters
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start : self._ends[index]])
