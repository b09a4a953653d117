"""The paper's Table 6 for a checkpoint: what policies get, and what they take.

python tools/sweep.py --checkpoint runs/in1k --data tfds:imagenet2012 --data-dir DIR --out in1k.csv
python tools/policies.py --checkpoint runs/in1k --data tfds:imagenet2012 --data-dir DIR \\
    --outcomes in1k.outcomes --learned runs/policy --out policies.csv --figure policies.png

Rows: one budget for all (Baseline: full width and depth; Best fixed: the best of the sweep that is
no dearer), leaving early at a confidence of tau (EE), learned policies (runs of
configs/policy_in1k.py) alone and then leaving early, and the oracle. Accuracy and GFLOPs are looked
up in what tools/sweep.py kept of each image; GFLOPs are means over the images, exit tests and
choosing included, and 'choosing' is the policy's own part. 'Over baselines' and 'over any fixed'
are the points of accuracy above what fixed sub-networks get for no more GFLOPs, +- one standard
error taken image by image: the baselines of the table, or all that were swept, the images dealt at
random to the two that give most; '-' for the baselines themselves, and where a policy is cheaper
than each of them. Times are measured on --timed images through the server, all policies in turn. A
learned policy that predicts losses is shown at several prices of a GFLOP: those at which it costs
as much as each --targets; where choosing alone costs as much, at the targets and choosing on top.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.convert.whole import write_bytes
from adaperceiver_jax.evaluate.outcomes import Outcomes
from adaperceiver_jax.evaluate.sweep import SweepFolder, points, weights_digest
from adaperceiver_jax.policies.budgets import Baseline, EarlyExit, Optimal, Policy
from adaperceiver_jax.policies.compare import Row, compare, csv_text, markdown, time_policies
from adaperceiver_jax.policies.figure import plot
from adaperceiver_jax.policies.learned import Learned
from adaperceiver_jax.tasks.command_line import counts, make_parser, refusals
from adaperceiver_jax.tasks.weights import find_policy
from tools.labelled import Labelled, add_labelled_arguments, find_labelled

OWN_ROWS = ("Baseline", "EE", "Best fixed", "Optimal")
SAMPLE = 4096
"""Images that prices are found on."""


def floats(text: str) -> list[float]:
    """'0.9,0.95' -> [0.9, 0.95]."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must read like 0.9,0.95") from error


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_labelled_arguments(parser)
    outcomes = "what tools/sweep.py kept of the same weights and images, all depths"
    parser.add_argument("--outcomes", type=Path, required=True, metavar="FOLDER", help=outcomes)
    parser.add_argument("--tokens", type=counts, help="of baselines (those that are trained)")
    parser.add_argument("--taus", type=floats, default=[0.9, 0.95], help="of early exit (0.9,0.95)")
    learned = "a run of configs/policy_in1k.py; may be given more than once"
    parser.add_argument("--learned", action="append", default=[], metavar="RUN", help=learned)
    targets = "GFLOPs an image that learned policies are to take (halfway between baselines)"
    parser.add_argument("--targets", type=floats, help=targets)
    parser.add_argument("--timed", type=int, default=512, metavar="N", help="images timed (512)")
    parser.add_argument("--repeats", type=int, default=3, help="times each is timed (3; 0: none)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a CSV (only printed)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a PNG (none)")
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> list[Row]:
    """All rows; ValueError for what cannot be."""
    if options.timed < 1 or options.repeats < 0:
        raise ValueError(f"--timed={options.timed} --repeats={options.repeats}: must be above 0")
    found = find_labelled(options)
    outcomes = find_outcomes(found, options)
    policies = make_policies(found, outcomes, options)
    rows = compare(found.model, policies, (images for images, _ in found.batches()), outcomes)
    if not options.repeats:
        return rows
    timed = np.concatenate(sample(found, options.timed))[: min(options.timed, len(found))]
    how = (policies, timed, options.batch, options.repeats)
    times = time_policies(found.model, found.params, *how)
    return [row.timed(times[row.policy]) for row in rows]


def find_outcomes(found: Labelled, options: argparse.Namespace) -> Outcomes:
    """The sweep's outcomes; ValueError if they are of other weights or images."""
    folder = SweepFolder(options.outcomes)
    wanted = {"weights": weights_digest(found.params), "dtype": options.dtype, **found.description}
    for name, value in wanted.items():
        if folder.about.get(name) != value:
            raise ValueError(
                f"--outcomes={options.outcomes}: of another {name} ({folder.about.get(name)}; here "
                f"{value}); run tools/sweep.py on this checkpoint and these images"
            )
    outcomes = folder.outcomes()
    if len(outcomes) != len(found):
        raise ValueError(
            f"--outcomes={options.outcomes}: holds {len(outcomes)} of {len(found)} images; give "
            "tools/sweep.py's command again, it goes on there"
        )
    return outcomes


def make_policies(
    found: Labelled, outcomes: Outcomes, options: argparse.Namespace
) -> dict[str, Policy]:
    """The policies by name, in the table's order."""
    config = found.model.config
    tokens = options.tokens or [t for t in config.token_granularities if t in outcomes.grid.tokens]
    baselines = {t: Baseline(config, t) for t in tokens}
    for t in tokens:
        check_swept(outcomes, [(t, config.full_width, config.depth)], f"Baseline (t={t})")
    if outcomes.grid.depths != tuple(range(1, config.depth + 1)):
        raise ValueError(
            f"--outcomes={options.outcomes}: holds depths {outcomes.grid.depths}; early exit needs "
            f"all {config.depth}: run tools/sweep.py without --depths"
        )
    policies: dict[str, Policy] = {f"Baseline (t={t})": b for t, b in baselines.items()}
    for t, baseline in baselines.items():
        for tau in options.taus:
            policies[f"EE (t={t}, tau={tau:g})"] = EarlyExit(tau, baseline)
    policies |= best_fixed(config, outcomes, baselines)
    for run in options.learned:
        if Path(run).name in OWN_ROWS:
            raise ValueError(f"--learned={run}: named like the table's own rows; rename the folder")
        for name, policy in learned_policies(run, found, outcomes, tokens, options).items():
            if name in policies:
                raise ValueError(f"--learned={run}: another run is named {Path(run).name}, too")
            policies[name] = policy
    policies["Optimal"] = Optimal(config, outcomes)
    policies["Optimal (never right: whole)"] = Optimal(config, outcomes, "whole")
    return policies


def check_swept(outcomes: Outcomes, budgets: Iterable[Sequence[int]], name: str) -> None:
    """ValueError unless the sweep holds these sub-networks."""
    for budget in budgets:
        try:
            outcomes.index(*budget)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; sweep these sub-networks, too") from error


def best_fixed(
    config: ap.AdaPerceiverConfig, outcomes: Outcomes, baselines: dict[int, Baseline]
) -> dict[str, Policy]:
    """The best sub-network of the sweep, of any width and depth, no dearer than each baseline.

    Picked on the images it is judged on, which flatters it a little.
    """
    found = points(config, outcomes)
    policies: dict[str, Policy] = {}
    for baseline in baselines.values():
        whole = ap.flops(config, baseline.num_tokens).total / 1e9
        best = ap.plan(found, max_gflops=whole)
        name = f"Best fixed (t={best.num_tokens}, w={best.width}, l={best.depth})"
        policies[name] = Baseline(config, **best.sub_network)
    return policies


def learned_policies(
    run: str,
    found: Labelled,
    outcomes: Outcomes,
    tokens: Sequence[int],
    options: argparse.Namespace,
) -> dict[str, Policy]:
    """One run's policies: at each target where it predicts losses, and leaving early."""
    policy = find_policy(run, found.model, found.params)
    name = Path(run).name
    check_swept(outcomes, policy.budgets.tolist(), f"--learned={run}")
    chosen: dict[str, Policy] = {}
    if policy.predicts_losses:
        images = sample(found, SAMPLE)
        for label, target in within_reach(policy, options.targets or between(policy, tokens), run):
            chosen[f"{name} (at {label})"] = policy.at(target, images)
    else:
        chosen[name] = policy
    early: dict[str, Policy] = {}
    for label, each in chosen.items():
        start = f"{label[:-1]}, " if label.endswith(")") else f"{label} ("
        early |= {f"{start}tau={tau:g})": EarlyExit(tau, each) for tau in options.taus}
    return chosen | early


def between(policy: Learned, tokens: Sequence[int]) -> list[float]:
    """GFLOPs halfway between neighbouring baselines."""
    config = policy.model.config
    whole = [
        float(cost)
        for cost, (t, w, l) in zip(policy.costs, policy.budgets.tolist(), strict=True)
        if t in tokens and (w, l) == (config.full_width, config.depth)
    ]
    return [(a + b) / 2 for a, b in itertools.pairwise(whole)] or whole


def within_reach(policy: Learned, targets: Sequence[float], run: str) -> list[tuple[str, float]]:
    """(name, GFLOPs) of the targets that leave enough for the cheapest budget.

    Where none does, choosing comes on top of them, and their names say so.
    """
    cheapest, least = policy.costs.min(), policy.gflops + policy.costs.min()
    for target in targets:
        if target < cheapest:
            raise ValueError(
                f"--targets={target:g}: the cheapest budget of {run} takes {cheapest:.4g} GFLOPs, "
                f"choosing {policy.gflops:.4g} more"
            )
    reached = [x for x in targets if x >= least]
    if not reached:
        return [(f"{x:.4g} + choosing", x + policy.gflops) for x in targets]
    for target in sorted(set(targets) - set(reached)):
        print(f"{run}: takes {least:.4g} GFLOPs at least; not shown at {target:g}", file=sys.stderr)
    return [(f"{x:.4g}", x) for x in reached]


def sample(found: Labelled, count: int) -> list[np.ndarray]:
    """Batches of at least this number of images, or of all there are; without their labels."""
    batches = (jax.device_get(images) for images, _ in found.batches())
    return list(itertools.islice(batches, -(-count // found.batch)))


@refusals()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compares the policies, prints the table, writes CSV and figure."""
    options = read_options(arguments)
    rows = evaluate(options)
    print(markdown(rows))
    if options.out:
        write_bytes(options.out, csv_text(rows).encode())
        print(f"\n{options.out}: {len(rows)} lines")
    if options.figure:
        plot(rows, options.figure)
        print(options.figure)


if __name__ == "__main__":
    main()
