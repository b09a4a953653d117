"""How right every sub-network of a dense model is over its validation images, and what it costs.

python tools/evaluate.py runs/ade20k --tokens 32,64,96,128,192,256 --widths 416,624,832 \\
    --depths 1-21 --out results/ade20k.csv --figures results/figures
python tools/evaluate.py runs/nyuv2 --out results/nyuv2.csv --own-size --flip \\
    --set dense.eigen_crop=True

RUN is the folder of a 'segment' or 'depth' run; its config says which images. A line of the CSV is
a sub-network at one resolution ('network': maps resized to what the network sees; 'own':
predictions resized to each map's own size), with the GFLOPs of an image's encoder apart from the
head's. Figures are those of the paper: the metric against the encoder's GFLOPs over widths and over
depths, and against the token count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from tqdm import tqdm

from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.data.pipeline import evaluation_batches
from adaperceiver_jax.evaluate.figures import along, plot_tokens, plot_tradeoff
from adaperceiver_jax.evaluate.points import DensePoint, csv_text, flat
from adaperceiver_jax.tasks.command_line import (
    add_set,
    add_sub_networks,
    make_parser,
    markdown,
    refusals,
    with_changes,
)
from adaperceiver_jax.tasks.dense_sweep import NETWORK, own_size_batches, sweep_dense
from adaperceiver_jax.tasks.make import DENSE, RunConfig, make_model, make_task, run_config
from adaperceiver_jax.tasks.weights import WEIGHTS, find_run
from adaperceiver_jax.train.feed import open_data, prepared

FREE = ("block_mask", "rope_scale")
"""Fields of the model that an evaluation may set otherwise."""


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("run", metavar="RUN", type=Path)
    add_sub_networks(parser, "the whole")
    parser.add_argument("--own-size", action="store_true", help="score at each map's own size too")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image's maps")
    parser.add_argument("--batch", type=int, help="images a call (config.evaluation.batch_size)")
    add_set(parser, "data.dir=DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV (only printed)")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="where figures go (none)")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0], help="(%(default)s)")
    parser.add_argument("--step", type=int, help="of a checkpoint (the newest that is whole)")
    return parser.parse_args(arguments)


def read_config(run: Path, changes: Sequence[str]) -> RunConfig:
    """The run's config with --set's changes; ValueError unless it is of a dense task."""
    own = run_config(run)
    config = with_changes(own, changes)
    if own.task not in DENSE:
        raise ValueError(f"{run}: its task is {own.task!r}; must be {' or '.join(DENSE)}")
    check_same_model(own, config)
    return config


def check_same_model(own: RunConfig, changed: RunConfig) -> None:
    """ValueError if the weights would mean something else: only FREE may differ."""
    if changed.task != own.task:
        raise ValueError(f"--set task={changed.task}: the run's is {own.task!r}")
    free = {name: getattr(changed.model, name) for name in FREE}
    as_own = dataclasses.replace(own, model=own.model.replace(**free))
    before, now = (vars(make_model(config).config) for config in (as_own, changed))
    different = [f"{name}={value}" for name, value in now.items() if value != before[name]]
    if different:
        raise ValueError(
            f"--set makes another model of the run's ({', '.join(different)[:200]}); of the model "
            f"only {' and '.join('model.' + name for name in FREE)} may be set"
        )


@contextlib.contextmanager
def open_batches(config: RunConfig, task: Any, size: int, own: bool) -> Iterator[Any]:
    """The validation images in batches, with a bar that says how far they are."""
    opened = open_data(config.data)
    prepare = prepared(config, task.inputs, task.num_classes)
    source = opened.validation.source
    if own:
        batches: Any = own_size_batches(source, prepare.own_size, size, config.data.threads)
    else:
        batches = evaluation_batches(source, size, transform=prepare.evaluate)
    try:
        yield tqdm(batches, total=-(-len(source) // size), unit="batch", ncols=80)
    finally:
        batches.close()


def evaluate(options: argparse.Namespace) -> list[DensePoint]:
    """All points; ValueError for what cannot be."""
    config = read_config(options.run, options.set)
    task: Any = make_task(config)
    size = config.evaluation.batch_size if options.batch is None else options.batch
    if size < 1 or size % jax.local_device_count():
        raise ValueError(
            f"--batch={size}: must be a multiple of the {jax.local_device_count()} devices"
        )
    sizes, own = (options.tokens, options.widths, options.depths), options.own_size
    task.check_sub_networks(*sizes)
    params = find_run(options.run, options.weights, options.step).read()
    with open_batches(config, task, size, own) as batches:
        return sweep_dense(task, params, batches, *sizes, own_size=own, flip=options.flip)


def table(points: Sequence[DensePoint]) -> str:
    """A Markdown table."""
    names, rows = flat(points)

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return markdown(names, ([cell(row.get(name)) for name in names] for row in rows))


def draw(points: Sequence[DensePoint], task: str, folder: Path) -> list[Path]:
    """The figures that these points are enough for."""
    points = [p for p in points if p.resolution == NETWORK and p.num_tokens is not None]
    if not points:
        return []
    metric = next(n for n in ("miou", "rmse", "eigen_rmse") if n in points[0].scores)
    drawn = []
    for by in ("width", "depth"):
        if len({getattr(p, by) for p in along(points, "num_tokens", by)}) > 1:
            drawn.append(folder / f"{task}_{by}.png")
            plot_tradeoff(points, by, "encoder_gflops", metric, drawn[-1])
    if len({p.num_tokens for p in points}) > 1:
        drawn.append(folder / f"{task}_tokens.png")
        plot_tokens(points, "encoder_gflops", metric, drawn[-1])
    return drawn


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates, prints the table, writes the CSV and the figures."""
    options = read_options(arguments)
    points = evaluate(options)
    print(table(points))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(options.out, csv_text(points).encode())
        print(f"\n{options.out}: {len(points)} lines")
    if options.figures:
        task = "segment" if "miou" in points[0].scores else "depth"
        for path in draw(points, task, options.figures):
            print(path)


if __name__ == "__main__":
    main()
