"""Refusals and tables of the scripts in this folder."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def refusals(path: Path | None = None) -> Iterator[None]:
    """Turns errors into one line that names the file, and exit status 1."""
    try:
        yield
    except (OSError, ValueError) as error:
        name = "" if path is None or str(path) in str(error) else f"{path}: "
        sys.exit(f"{type(error).__name__}: {name}{error}")


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV that must have these columns and at least one row."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: has no column {missing[0]}; needs {', '.join(columns)}")
        for row in reader:
            yield reader.line_num, {name: row[name] or "" for name in columns}
        if reader.line_num < 2:
            raise ValueError(f"{path}: holds no row")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_csv(path: Path | None, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Writes the same as CSV, "-" as an empty cell; nothing without a path."""
    if path is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([["" if cell == "-" else cell for cell in line] for line in lines])
        with refusals(path):
            path.write_text(text.getvalue(), encoding="utf-8")
