"""Parts that command lines share: parsers, refusals in one line, options, tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config, with_key

FULL = re.compile("RESOURCE_EXHAUSTED|out of memory|allocate memory", re.IGNORECASE)
"""Words of JAX and PyTorch about a device whose memory is full."""


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with a module's docstring."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Decorates a command: what it refuses is one line on stderr, and exit status 1."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns that reading is read only
    try:
        with enough_memory():
            yield
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Ends a command that takes --batch with a line that says what to do where JAX or PyTorch says
    that a device's memory is full. A CPU's system may end it before they do."""
    try:
        yield
    except RuntimeError as error:  # both libraries' errors are
        if not FULL.search(str(error)):
            raise
        why = str(error).strip().splitlines()[0]
        sys.exit(f"The device's memory is full: give a smaller --batch, or another device ({why})")


def counts(text: str) -> list[int]:
    """'32,64' -> [32, 64]; '1-3,7' -> [1, 2, 3, 7]."""
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: must read like 32,64 or 1-21")
        if int(first) > int(last or first):
            raise argparse.ArgumentTypeError(f"{text!r}: {part.strip()} runs backwards")
        values += range(int(first), int(last or first) + 1)
    return values


def add_sub_networks(parser: argparse.ArgumentParser, depths: str) -> None:
    """The options of a sweep over sub-networks; `depths` says which it takes if none are named."""
    parser.add_argument("--tokens", type=counts, help="token counts, any (those that are trained)")
    parser.add_argument("--widths", type=counts, help="widths (those that are trained)")
    parser.add_argument("--depths", type=counts, help=f"depths, 1-21 say ({depths})")


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """The option --set, whose values `with_changes` takes."""
    what = f"another value of the config, {example} say; may be given more than once"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def with_changes(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The config with the values of --set; ValueError for what cannot be."""
    values = dataclasses.asdict(config)
    for change in changes:
        key, given, text = change.partition("=")
        if not given:
            raise ValueError(f"--set {change}: must read like data.dir=DIR")
        values = with_key(RunConfig, values, key, text)
    return from_config(RunConfig, values)


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
