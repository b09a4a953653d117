"""Trains a tiny AdaPerceiver once for all on rendered images, and shows what came of it.

Stages 1 (tokens), 2 (and depth) and 3 (and width), each from the one before, then the same model
for its full budget alone, with as many steps; then every sub-network is evaluated. Leaves in the
folder: one run a stage, `results.md` (the claims, accuracy against FLOPs of every sub-network, of
early exit and of the oracle), `results.csv`, and in `figures/` accuracy against FLOPs and along
each axis. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.evaluate.figures import plot_accuracy_flops, plot_axes
from adaperceiver_jax.evaluate.outcomes import Outcomes, join, make_grid
from adaperceiver_jax.evaluate.points import Point, csv_text, frontier
from adaperceiver_jax.evaluate.sweep import collect
from adaperceiver_jax.evaluate.sweep import points as points_of
from adaperceiver_jax.policies.budgets import Baseline, EarlyExit, Optimal
from adaperceiver_jax.policies.compare import compare
from adaperceiver_jax.policies.compare import markdown as policy_table
from adaperceiver_jax.tasks.command_line import make_parser, markdown
from adaperceiver_jax.tasks.make import RunConfig, make_task, read_config
from adaperceiver_jax.train.loop import train
from adaperceiver_jax.train.workdir import MODEL

SCENES = Path(__file__).resolve().parents[1] / "configs" / "scenes.py"
STAGES = {
    "1": "stage 1: tokens",
    "2": "stage 2: tokens and depth",
    "3": "stage 3: tokens, depth and width",
    "alone": "alone: the full budget and nothing else",
}
BATCH = 512
TOLERANCE = ", in all, and nowhere more than 1 point below what fewer gave"
TAU = 0.9


def make_config(stage: str, argument: str, workdir: Path) -> RunConfig:
    """The stage's config of configs/scenes.py."""
    config = read_config(f"{SCENES}:stage={stage}" + (f",{argument}" if argument else ""))
    if stage in ("2", "3"):
        return dataclasses.replace(config, init_from=str(workdir / f"stage{int(stage) - 1}"))
    return config


def batches(config: RunConfig) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The validation images, normalised, and their labels."""
    data = config.data
    source = Scenes(
        data.validation_count, data.image_size, "validation", data.seed, data.difficulty
    )
    for first in range(0, len(source), BATCH):
        samples = [source[i] for i in range(first, min(first + BATCH, len(source)))]
        images = config.images.normalise(jnp.asarray(np.stack([s["image"] for s in samples])))
        yield images, jnp.asarray(np.stack([s["label"] for s in samples]))


def between(trained: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Each token count halfway between two trained ones -> the two."""
    pairs = itertools.pairwise(trained)
    return {(a + b) // 2: (a, b) for a, b in pairs if (a + b) // 2 not in (a, b)}


def claims(points: Sequence[Point], alone: Point, config: RunConfig) -> list[tuple[str, str, bool]]:
    """The shape of the paper's results: a claim, what was found, True if it holds."""
    c = config.model
    at = {(p.num_tokens, p.width, p.depth): 100 * p.accuracy for p in points}
    top, full, deep = c.max_latent_tokens, c.full_width, c.depth
    by_depth = [at[top, full, l] for l in range(1, deep + 1)]
    by_tokens = [at[t, full, deep] for t in c.token_granularities]
    by_width = [at[top, w, deep] for w in c.widths]
    halfway = {
        t: (at[t, full, deep], min(at[a, full, deep], at[b, full, deep]))
        for t, (a, b) in between(c.token_granularities).items()
    }

    def line(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values)

    def rises(values: Sequence[float]) -> bool:
        """Within 1 point of noise, and in all."""
        best_before = np.maximum.accumulate(values)[:-1]
        return bool(np.all(np.array(values[1:]) >= best_before - 1) and values[-1] > values[0])

    whole = at[top, full, deep]
    return [
        (
            f"rises with depth (1 to {deep}, {top} tokens, width {full}){TOLERANCE}",
            line(by_depth),
            rises(by_depth),
        ),
        (
            f"rises with tokens ({', '.join(map(str, c.token_granularities))}){TOLERANCE}",
            line(by_tokens),
            rises(by_tokens),
        ),
        (
            "a token count between two trained ones: at least the lesser of them, less 1 point",
            "; ".join(f"{t}: {x:.1f} (lesser {y:.1f})" for t, (x, y) in halfway.items()),
            all(x >= y - 1 for x, y in halfway.values()),
        ),
        (
            f"every width within 3 points of the full one ({', '.join(map(str, c.widths))})",
            line(by_width),
            min(by_width) >= whole - 3,
        ),
        (
            "the whole model at most 2 points below one trained for it alone",
            f"{whole:.1f} against {100 * alone.accuracy:.1f}",
            whole >= 100 * alone.accuracy - 2,
        ),
    ]


def report(
    points: Sequence[Point],
    alone: Point,
    found: Sequence[tuple[str, str, bool]],
    config: RunConfig,
    seconds: float,
) -> str:
    """The text of `results.md`."""
    c, depths = config.model, range(1, config.model.depth + 1)
    at = {(p.num_tokens, p.width, p.depth): p for p in points}

    def line(t: int, width: int) -> list[str]:
        row = [at[t, width, l] for l in depths]
        name = f"{t}" if t in c.token_granularities else f"{t} (untrained)"
        return [name, *(f"{100 * p.accuracy:.1f} ({1e3 * p.gflops:.1f})" for p in row)]

    tokens = sorted({p.num_tokens for p in points})
    parts = [
        "# A tiny AdaPerceiver, trained once for all sub-networks",
        f"{config.data.train_count:,} rendered images of {config.data.image_size} pixels, "
        f"{config.data.validation_count:,} others to evaluate; {c.embed_dim} channels, "
        f"{c.depth} blocks, up to {c.max_latent_tokens} tokens; "
        f"{seconds / 60:.1f} minutes on {jax.device_count()} x {jax.devices()[0].device_kind}.",
        markdown(
            ("claim: accuracy ...", "found (%)", "holds"),
            ((what, values, "yes" if good else "NO") for what, values, good in found),
        ),
    ]
    for width in c.widths:
        head = ("tokens", *(f"depth {l}" for l in depths))
        parts.append(f"## Width {width}: accuracy (%) and MFLOPs an image")
        parts.append(markdown(head, (line(t, width) for t in tokens)))
    best = (
        (*p.sub_network.values(), f"{1e3 * p.gflops:.1f}", f"{100 * p.accuracy:.1f}")
        for p in frontier(points)
    )
    parts += [
        "## The best at their cost",
        markdown(("tokens", "width", "depth", "MFLOPs", "accuracy (%)"), best),
        f"Trained alone for {alone.num_tokens} tokens, width {alone.width}, depth {alone.depth}: "
        f"{100 * alone.accuracy:.1f}%.",
    ]
    return "\n\n".join(parts) + "\n"


def evaluate(
    config: RunConfig, folder: Path, tokens: Sequence[int], widths: Sequence[int]
) -> tuple[ap.AdaPerceiver, Outcomes]:
    """A finished run's model, and what its sub-networks say of every image."""
    model, params = ap.from_pretrained(folder / MODEL)
    if not isinstance(model, ap.AdaPerceiver):
        raise ValueError(f"{folder / MODEL}: holds no AdaPerceiver")
    grid = make_grid(model.config, tokens, widths)
    return model, join(list(collect(model, params, batches(config), grid)))


def policies(config: RunConfig, model: ap.AdaPerceiver, outcomes: Outcomes) -> str:
    """One budget for all, early exit and the oracle, as a table like the paper's Table 6."""
    c = model.config
    fixed = {t: Baseline(c, t) for t in c.token_granularities}
    chosen: dict[str, ap.policies.Policy] = {
        **{f"Baseline (t={t})": each for t, each in fixed.items()},
        **{f"EE (t={t}, tau={TAU})": EarlyExit(TAU, each) for t, each in fixed.items()},
        "Optimal": Optimal(c, outcomes),
    }
    return policy_table(compare(model, chosen, (images for images, _ in batches(config)), outcomes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, writes."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="(runs/demo)")
    what = "an argument of configs/scenes.py: 'runlocal' for a minute's try, or key=value,..."
    parser.add_argument("--config", default="", help=what)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    configs = {stage: make_config(stage, options.config, options.workdir) for stage in STAGES}
    folders = {
        stage: options.workdir / (stage if stage == "alone" else f"stage{stage}")
        for stage in STAGES
    }
    for stage, config in configs.items():
        print(f"\n{STAGES[stage]}", flush=True)
        if not train(config, make_task(config), folders[stage]).finished:
            return
    print("\nevaluating every sub-network ...", flush=True)
    config = configs["3"]
    c = config.model
    tokens = sorted({*c.token_granularities, *between(c.token_granularities)})
    model, outcomes = evaluate(config, folders["3"], tokens, c.widths)
    points = points_of(c, outcomes)
    whole = evaluate(configs["alone"], folders["alone"], [c.max_latent_tokens], [c.full_width])
    alone = points_of(c, whole[1])[-1]
    found = claims(points, alone, config)
    text = report(points, alone, found, config, time.perf_counter() - began)
    text += f"\n## Policies\n\n{policies(config, model, outcomes)}\n"
    (options.workdir / "results.md").write_text(text)
    (options.workdir / "results.csv").write_text(csv_text(points))
    figure = options.workdir / "figures" / "accuracy_flops.png"
    plot_accuracy_flops(points, figure, "One set of weights, every sub-network", alone)
    plot_axes(points, figure.with_name("tokens_width_depth.png"), "One set of weights")
    print("\n" + text)
    print(f"{options.workdir / 'results.md'}, {figure}")


if __name__ == "__main__":
    main()
