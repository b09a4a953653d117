"""How right every sub-network of a classifier is, and what it costs: one line of a CSV each.

python tools/sweep.py --checkpoint runs/in1k --data tfds:imagenet2012 --data-dir DIR \\
    --tokens 32,48,64,96,128,192,256,384 --widths 416,624,832 --depths 1-21 --out in1k.csv
python tools/sweep.py --checkpoint runs/demo/stage3 --out demo.csv

Without --data the images are the run's own validation images. All depths of a token count and width
come from one pass, under the block mask those of all trained token counts too. Columns: top-1 and
top-5 accuracy (0 to 1), GFLOPs of an image, the median time of a call with --batch images, what its
program needs of the device's memory, weights included.

Beside sweep.csv the folder sweep.outcomes keeps what was said of each image: the same command goes
on there after any end, and tools/policies.py reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from tqdm import tqdm

from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.evaluate.costs import measure, pairs
from adaperceiver_jax.evaluate.outcomes import make_grid
from adaperceiver_jax.evaluate.points import Point, csv_text, frontier
from adaperceiver_jax.evaluate.sweep import SweepFolder, collect, points, weights_digest
from adaperceiver_jax.tasks.command_line import add_sub_networks, make_parser, markdown, refusals
from tools.labelled import Labelled, add_labelled_arguments, find_labelled, on_all_devices


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_labelled_arguments(parser)
    add_sub_networks(parser, "all")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the CSV")
    parser.add_argument("--no-latency", action="store_true", help="measure no time and no memory")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (5)")
    return parser.parse_args(arguments)


def sweep(options: argparse.Namespace) -> list[Point]:
    """All points, by the outcomes' folder; ValueError for what cannot be."""
    if options.repeats < 1:
        raise ValueError(f"--repeats={options.repeats}: must be at least 1")
    if options.out.suffix != ".csv":
        raise ValueError(f"--out={options.out}: must end in .csv")
    found = find_labelled(options)
    grid = make_grid(found.model.config, options.tokens, options.widths, options.depths)
    about = {
        **dataclasses.asdict(grid),
        "weights": weights_digest(found.params),
        "dtype": options.dtype,
        "batch": options.batch,
        **found.description,
    }
    folder = SweepFolder(options.out.with_suffix(".outcomes"), about)
    run_images(found, folder)
    if not options.no_latency:
        run_costs(found, folder, options.repeats)
    costs = {} if options.no_latency else folder.costs()
    return points(found.model.config, folder.outcomes(), costs)


def run_images(found: Labelled, folder: SweepFolder) -> None:
    """Adds the outcomes of all batches that are not done."""
    done = folder.batches
    params = on_all_devices(found.params)
    batches = collect(found.model, params, found.batches(done), folder.grid)
    first = min(done * found.batch, len(found))
    with tqdm(total=len(found), initial=first, unit="image", ncols=80) as bar:
        for outcomes in batches:
            folder.add(outcomes)
            bar.update(len(outcomes))


def run_costs(found: Labelled, folder: SweepFolder, repeats: int) -> None:
    """Adds the costs of all sub-networks that were not measured."""
    images = jax.device_get(next(iter(found.batches()))[0])  # measured on one device
    bar = tqdm(list(pairs(folder.grid)), unit="tokens x width", ncols=80)
    for num_tokens, width in bar:
        bar.set_postfix_str(f"t={num_tokens} w={width}")
        if not folder.has_costs(num_tokens, width):
            depths = folder.grid.depths
            costs = measure(found.model, found.params, images, num_tokens, width, depths, repeats)
            folder.add_costs(num_tokens, width, costs)


def table(found: Sequence[Point]) -> str:
    """The best at their cost, in Markdown."""
    rows = []
    for p in frontier(found):
        ms = "-" if p.latency_ms is None else f"{p.latency_ms:.1f}"
        accuracies = (f"{100 * (x or 0):.2f}%" for x in (p.accuracy, p.top5))
        rows.append((p.num_tokens, p.width, p.depth, *accuracies, f"{p.gflops:.4g}", ms))
    return markdown(("tokens", "width", "depth", "top-1", "top-5", "GFLOPs", "ms"), rows)


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Sweeps, writes the CSV, prints the best."""
    options = read_options(arguments)
    found = sweep(options)
    write_bytes(options.out, csv_text(found).encode())
    print(f"The best at their cost, of {len(found)} sub-networks:\n\n{table(found)}\n")
    print(options.out)


if __name__ == "__main__":
    main()
