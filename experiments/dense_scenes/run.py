"""Segmentation and depth learned on rendered images, on 2 cores.

python -m experiments.dense_scenes.run --workdir=runs/dense_scenes     # about half an hour

Trains the small runs of configs/ade20k.py and nyuv2.py from fresh weights, then the paper's whole
way in small (a teacher, features distilled from it, heads on the frozen model, heads on the frozen
teacher), and what the paper leaves open; writes docs/dense_scenes.md and its figures. Called again,
it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.data.pipeline import evaluation_batches
from adaperceiver_jax.evaluate.dense_metrics import depth_errors, depth_scores, segmentation_scores
from adaperceiver_jax.evaluate.figures import plot_tokens, plot_tradeoff
from adaperceiver_jax.evaluate.points import DensePoint, csv_text
from adaperceiver_jax.tasks.dense_sweep import sweep_dense
from adaperceiver_jax.tasks.make import RunConfig, make_task, read_config
from adaperceiver_jax.tasks.weights import find_run
from adaperceiver_jax.train.feed import open_data, prepared
from adaperceiver_jax.train.loop import train
from experiments.paper.shared import markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
DEEP = "model.layer_scale=None,model.process_token_init=norm_randn"
FROZEN = (
    "train_only=('backbone/(write_head|output_latents|output_adapter)/.*', 'head/.*'),"
    "init_skip=('head/.*',)"
)
ON_VIT = "train_only=('head/.*', 'mlp/.*'),init_skip=('head/.*', 'mlp/.*')"
LONG = "data.train_count=20000,data.difficulty=0.15,log_every=200,ema=0.99"
RUNS = {
    "segment": "ade20k.py:runlocal",
    "depth": "nyuv2.py:runlocal",
    "teacher": "scratch.py:runlocal,task=teacher,length=3000 steps,"
    f"{LONG},evaluation.sub_networks=()",
    "features": "features.py:runlocal,teacher.path={0}/teacher/model,length=800 steps,"
    f"{LONG},{DEEP}",
    "segment_frozen": f"ade20k.py:runlocal,init_from={{0}}/features,{FROZEN}",
    "depth_frozen": f"nyuv2.py:runlocal,init_from={{0}}/features,{FROZEN}",
    "segment_vit": f"vit_ade20k.py:runlocal,init_from={{0}}/teacher,{ON_VIT}",
    "depth_vit": f"vit_nyuv2.py:runlocal,init_from={{0}}/teacher,{ON_VIT}",
    "segment_fixed_rope": "ade20k.py:runlocal,model.rope_scale=1.0",
    "segment_16_outputs": "ade20k.py:runlocal,model.patch_size=8",
    "segment_segmenter": "ade20k.py:runlocal,dense.head=segmenter",
}
"""A config of configs/ with its argument; {0} is the workdir."""


def config_of(name: str, workdir: Path) -> RunConfig:
    return read_config(f"{DOCS.parent}/configs/{RUNS[name].format(workdir)}")


def command(name: str, workdir: str = "runs/dense_scenes") -> str:
    """The command that a user would type."""
    config = f"configs/{RUNS[name].format(workdir)}"
    return f'python main.py --config="{config}" --workdir={workdir}/{name}'


def sweep(name: str, workdir: Path) -> list[DensePoint]:
    """All tokens at full width and depth, and widths and depths at the trained tokens."""
    config = config_of(name, workdir)
    task: Any = make_task(config)
    prepare = prepared(config, task.inputs, task.num_classes).evaluate
    source = open_data(config.data).validation.source
    images = evaluation_batches(source, 128, transform=prepare)
    given = task, find_run(workdir / name).read(), images
    if config.trains_vit:
        return sweep_dense(*given)
    c = config.model
    points = sweep_dense(*given, TOKENS, c.widths, range(1, c.depth + 1))
    write_bytes(workdir / f"{name}.csv", csv_text(points).encode())
    return points


def trivial(name: str, workdir: Path) -> dict[str, float]:
    """Scores without any network: the training images' commonest class, or their mean depth."""
    config = config_of(name, workdir)
    opened = open_data(config.data)
    train_images, others = opened.train.source, opened.validation.source
    if config.task == "segment":
        classes = config.dense.num_classes
        counts = np.zeros(classes, np.int64)
        for i in range(0, len(train_images), 8):
            counts += np.bincount(train_images[i]["segmentation"].ravel(), minlength=classes)
        confusion = np.zeros((classes, classes), np.int64)
        for i in range(len(others)):
            seen = np.bincount(others[i]["segmentation"].ravel(), minlength=classes)
            confusion[:, counts.argmax()] += seen
        return segmentation_scores(confusion)
    mean = np.mean([train_images[i]["depth"].mean() for i in range(0, len(train_images), 8)])
    depth = np.stack([others[i]["depth"] for i in range(len(others))])
    valid = (depth > 0) & (depth <= config.data.max_depth)
    sums = jax.tree.map(
        lambda x: np.asarray(x, np.float64).sum(),
        depth_errors(np.full_like(depth, mean), depth, valid),
    )
    return depth_scores(sums)


def at(points: Sequence[DensePoint], tokens: int | None = None, width=None, depth=None):
    """The scores of one sub-network; None is the largest."""
    wanted = {"num_tokens": tokens, "width": width, "depth": depth}
    for name, value in wanted.items():
        if value is None and points[0].num_tokens is not None:
            wanted[name] = max(getattr(p, name) for p in points if p.tokens_are == "trained")
    (point,) = (p for p in points if all(getattr(p, n) == v for n, v in wanted.items()))
    return point.scores


KEYS = {
    "segment": ("miou", "mean_accuracy", "accuracy"),
    "depth": ("rmse", "rmse_pixels", "abs_rel", "log10", "delta1", "delta2", "delta3"),
}


def show(task: str, score: float) -> str:
    return f"{100 * score:.1f}" if task == "segment" else f"{score:.3f}"


def summary(task: str, found: dict[str, Any], names: dict[str, str]) -> str:
    """A row per run, under the trivial baseline."""
    lines = [
        (label, *(show(task, found[name][key]) for key in KEYS[task]))
        for name, label in names.items()
    ]
    unit = " (%)" if task == "segment" else ""
    return markdown(("", *(key + unit for key in KEYS[task])), lines)


def token_table(task: str, runs: dict[str, list[DensePoint]]) -> str:
    """mIoU or RMSE over the token counts, at full width and depth; runs: points by their label."""
    kinds = {p.num_tokens: p.tokens_are for points in runs.values() for p in points}
    lines = [
        (label, *(show(task, at(points, t)[KEYS[task][0]]) for t in TOKENS))
        for label, points in runs.items()
    ]
    return markdown(("tokens", *(f"{t}{'*' * (kinds[t] != 'trained')}" for t in TOKENS)), lines)


def grid_table(task: str, points: list[DensePoint], by: str) -> str:
    """The same over the trained token counts, and widths or depths."""
    values = sorted({getattr(p, by) for p in points})
    trained = sorted({p.num_tokens for p in points if p.tokens_are == "trained"})
    lines = [
        (f"{t} tokens", *(show(task, at(points, t, **{by: v})[KEYS[task][0]]) for v in values))
        for t in trained
    ]
    return markdown(("", *(f"{by} {v}" for v in values)), lines)


def page(workdir: Path) -> str:
    """docs/dense_scenes.md, from the runs' folders."""
    points = {name: sweep(name, workdir) for name in RUNS if name not in ("teacher", "features")}
    scores = {name: at(p) for name, p in points.items()}
    scores |= {f"{name}_trivial": trivial(name, workdir) for name in ("segment", "depth")}
    scores |= {f"{name}_few": at(points[f"{name}_frozen"], 2) for name in ("segment", "depth")}
    for task, metric in (("segment", "miou"), ("depth", "rmse")):
        for name in (task, f"{task}_frozen"):
            for by in ("width", "depth"):
                picture = DOCS / "figures" / f"scenes_{name}_by_{by}.png"
                plot_tradeoff(points[name], by, "encoder_gflops", metric, picture)
            picture = DOCS / "figures" / f"scenes_{name}_tokens.png"
            plot_tokens(points[name], "encoder_gflops", metric, picture)
    segment_names = {
        "segment_trivial": "the commonest class everywhere",
        "segment": "**`:runlocal`**: fresh weights, all trained",
        "segment_frozen": "the recipe: frozen, distilled encoder",
        "segment_few": "the same, 2 tokens",
        "segment_vit": "the baseline: frozen teacher (ViT)",
        "segment_segmenter": "`:runlocal` with the mask transformer",
        "segment_16_outputs": "`:runlocal` with 16 output tokens",
    }
    depth_names = {
        "depth_trivial": "the mean depth everywhere",
        "depth": "**`:runlocal`**: fresh weights, all trained",
        "depth_frozen": "the recipe: frozen, distilled encoder",
        "depth_few": "the same, 2 tokens",
        "depth_vit": "the baseline: frozen teacher (ViT)",
    }
    over_tokens = {
        "`:runlocal`, 64 output tokens": points["segment"],
        "`:runlocal`, 16 output tokens": points["segment_16_outputs"],
        "mask transformer": points["segment_segmenter"],
        "positions never scaled (`rope_scale=1`)": points["segment_fixed_rope"],
        "frozen encoder": points["segment_frozen"],
    }
    depth_tokens = {"`:runlocal`": points["depth"], "frozen encoder": points["depth_frozen"]}
    parts = {
        "segment_table": summary("segment", scores, segment_names),
        "depth_table": summary("depth", scores, depth_names),
        "segment_tokens": token_table("segment", over_tokens),
        "depth_tokens": token_table("depth", depth_tokens),
        "segment_depths": grid_table("segment", points["segment"], "depth"),
        "segment_widths": grid_table("segment", points["segment"], "width"),
        "depth_depths": grid_table("depth", points["depth"], "depth"),
        "commands": "\n".join(command(name) for name in RUNS),
    }
    text = (Path(__file__).parent / "page.md").read_text()
    for name, value in parts.items():
        text = text.replace("{" + name + "}", value)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, evaluates, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/dense_scenes"))
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    for name in RUNS:
        config = config_of(name, options.workdir)
        if not train(config, make_task(config), options.workdir / name).finished:
            return  # asked to stop
    text = page(options.workdir)
    write_bytes(DOCS / "dense_scenes.md", text.encode())
    print(DOCS / "dense_scenes.md")


if __name__ == "__main__":
    main()
