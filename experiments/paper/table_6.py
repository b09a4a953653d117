"""Table 6: the paper's policies, what their GFLOPs imply, and a sweep of our own policies.

python -m experiments.paper.table_6 POLICIES.csv --out table_6_ours.csv      # prints Markdown

POLICIES.csv is what tools/policies.py writes; without it the paper's rows stand alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import adaperceiver_jax as ap
from experiments.paper.counter import classifier
from experiments.paper.shared import markdown, read_csv, refusals, write_csv

TABLE = Path(__file__).with_name("table_6.csv")
DEPTH = 21
OURS = ("policy", "accuracy", "gflops", "choosing_gflops", "ms", "images")
OUR_COLUMNS = ("policy", "accuracy (%)", "GFLOPs", "GFLOPs of choosing", "ms", "images")
PAPER_COLUMNS = (
    *("policy", "accuracy (%)", "paper: GFLOPs", "rebuilt", "plain GFLOPs, ours"),
    "what the printed GFLOPs imply",
)


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with these columns, as they are written."""
    rows = []
    for line, row in read_csv(path, columns):
        for name in ("accuracy", "gflops"):
            try:
                float(row[name])
            except ValueError as error:
                said = f"{path}, line {line}: {name}={row[name]!r}: must be a number"
                raise ValueError(said) from error
        rows.append({name: cell or "-" for name, cell in row.items()})
    return rows


def mean_depths(tokens: int, gflops: float) -> tuple[float, float]:
    """Depths that cost so much by the reference's counter: read out once, or after every block."""
    config = ap.AdaPerceiverConfig()
    block = classifier(tokens, 2) - classifier(tokens, 1)
    readout = 3 * config.embed_dim * (config.embed_dim * (2 * tokens + 2) + 1000) / 1e9
    before = classifier(tokens, 1) - block - readout
    return (gflops - before - readout) / block, (gflops - before) / (block + readout)


def mean_tokens(gflops: float) -> float:
    """The token count that costs so much at full depth: the counter is linear in tokens."""
    one = classifier(2, DEPTH) - classifier(1, DEPTH)
    return 1 + (gflops - classifier(1, DEPTH)) / one


def paper_row(row: dict[str, str]) -> list[str]:
    """The paper's row beside what can be derived of it."""
    policy, gflops = row["policy"], float(row["gflops"])
    found = re.search(r"t=(\d+)", policy)
    tokens = int(found.group(1)) if found else 0
    rebuilt, plain, implied = "-", "-", "-"
    if policy.startswith("Baseline"):
        rebuilt = f"{classifier(tokens, DEPTH):.2f}"
        plain = f"{ap.flops(ap.AdaPerceiverConfig(), tokens).total / 1e9:.2f}"
        implied = f"depth {DEPTH}"
    elif policy.startswith("EE"):
        once, each = mean_depths(tokens, gflops)
        implied = f"mean depth {once:.1f} with one readout, {each:.1f} with one a block"
    elif policy == "RL (tokens only)":
        implied = f"{mean_tokens(gflops):.0f} tokens on average, choosing not counted"
    return [policy, row["accuracy"], row["gflops"], rebuilt, plain, implied]


def our_row(row: dict[str, str]) -> list[str]:
    return [row["policy"], f"{100 * float(row['accuracy']):.4g}", *(row[n] for n in OURS[2:])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", metavar="POLICIES.csv", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV (only printed)")
    options = parser.parse_args(arguments)
    with refusals(options.policies):
        paper = [paper_row(row) for row in read(TABLE, ("policy", "accuracy", "gflops"))]
        ours = [our_row(row) for row in read(options.policies, OURS)] if options.policies else []
    print(markdown(PAPER_COLUMNS, paper))
    if ours:
        print("\n" + markdown(OUR_COLUMNS, ours))
    head, lines = (OUR_COLUMNS, ours) if ours else (PAPER_COLUMNS, paper)
    write_csv(options.out, head, lines)


if __name__ == "__main__":
    main()
