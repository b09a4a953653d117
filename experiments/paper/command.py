"""What the scripts of this folder share: their command lines, and refusals of one line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adaperceiver_jax.evaluate.dense_table import DensePoint, read_csv
from adaperceiver_jax.evaluate.figures import COSTS
from adaperceiver_jax.evaluate.points import Point, read_points

FOLDER = Path(__file__).parent


def make_parser(doc: str | None, out: str | None = None) -> argparse.ArgumentParser:
    """A parser that says the module's docstring; out: the picture's name, None is none."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if out is not None:
        help = "the picture (%(default)s)"
        parser.add_argument("--out", type=Path, default=Path(out), metavar="FILE", help=help)
        parser.add_argument("--title", default="", help="above it (nothing)")
    return parser


@contextlib.contextmanager
def refusals(path: Path | None = None) -> Iterator[None]:
    """Turns errors into one line that names the file, and exit status 1."""
    try:
        yield
    except (OSError, ValueError) as error:
        name = "" if path is None or str(path) in str(error) else f"{path}: "
        sys.exit(f"{type(error).__name__}: {name}{error}")


def classification(
    doc: str | None,
    out: str,
    draw: Callable[[list[Point], str, Path, str], None],
    x: str,
    arguments: Sequence[str] | None,
) -> None:
    """The whole command of a figure of one sweep of a classifier.

    draw: takes the points, what the x axis is, the picture's path and its title.
    x: what the x axis is unless --x says otherwise.
    """
    parser = make_parser(doc, out)
    parser.add_argument("sweep", metavar="SWEEP.csv", type=Path, help="of tools/sweep.py")
    parser.add_argument("--x", choices=COSTS, default=x, help="the x axis (%(default)s)")
    options = parser.parse_args(arguments)
    with refusals(options.sweep):
        draw(read_points(options.sweep), options.x, options.out, options.title)
    print(options.out)


def dense(
    doc: str | None,
    out: str,
    metrics: Sequence[str],
    draw: Callable[[list[DensePoint], str, Path, str], None],
    arguments: Sequence[str] | None,
) -> None:
    """The whole command of a figure of one sweep of a dense model.

    draw: takes the points, the metric, the picture's path and its title.
    metrics: the first that the sweep holds is drawn.
    """
    parser = make_parser(doc, out)
    parser.add_argument("sweep", metavar="SWEEP.csv", type=Path, help="of tools/evaluate.py")
    options = parser.parse_args(arguments)
    with refusals(options.sweep):
        points = read_dense(options.sweep)
        metric = next((name for name in metrics if name in points[0].scores), None)
        if metric is None:
            raise ValueError(f"has no column {metrics[0]}; must be a sweep of the figure's task")
        draw(points, metric, options.out, options.title)
    print(options.out)


def read_dense(path: Path) -> list[DensePoint]:
    """An AdaPerceiver's points at the network's resolution; ValueError if there are none."""
    try:
        points = read_csv(path)
    except KeyError as error:
        name = error.args[0]
        raise ValueError(f"has no column {name}; must be a CSV of tools/evaluate.py") from error
    points = [p for p in points if p.resolution == "network" and p.num_tokens is not None]
    if not points:
        raise ValueError("holds no sub-network at the network's resolution")
    return points
