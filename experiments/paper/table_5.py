"""Table 5: the paper's FLOPs of every model, rebuilt, beside what our own count gives.

python -m experiments.paper.table_5 --out table_5_ours.csv      # prints Markdown; needs no weights

The reference's counter is that of counter.py. Ours are 2 a multiply-add, with attention; beside
them, of linear layers alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import adaperceiver_jax as ap
from experiments.paper.counter import classifier, vit
from experiments.paper.shared import markdown, read_csv, write_csv

TABLE = Path(__file__).with_name("table_5.csv")
MISPRINT = "MatViT-L/384px (w=128)"
NESTING = (
    "q, k x2, v, proj, FFN x3, read, write, head x3, patch convolution, embed FFN x4; patch 16"
)
COLUMNS = (
    *("model", "accuracy (%)", "latency (ms, the paper's)"),
    *("paper: forward GFLOPs", "rebuilt", "derived", "paper: backward GFLOPs", "rebuilt backward"),
    *("ours", "ours, linear layers only", "paper / ours", "what the reference's counter did"),
)


@dataclasses.dataclass(frozen=True)
class Printed:
    """A row of the paper's table; counts are kept as printed, to know their digits."""

    model: str
    params_m: float
    accuracy: float
    """Top 1, in percent."""
    latency_ms: float
    """Latency of a batch of 512."""
    forward_gflops: Decimal
    backward_gflops: Decimal


@dataclasses.dataclass(frozen=True)
class Row:
    """The paper's row, rebuilt, and ours. GFLOPs of one image."""

    printed: Printed
    rebuilt: float
    rebuilt_backward: float | None
    ours: float
    ours_linear: float
    why: str

    def cells(self) -> list[str]:
        p = self.printed
        backward = "-" if self.rebuilt_backward is None else f"{self.rebuilt_backward:.2f}"
        derived = "yes" if agrees(self.rebuilt, p.forward_gflops) else "no"
        return [
            *(p.model, f"{p.accuracy:g}", f"{p.latency_ms:g}"),
            *(str(p.forward_gflops), f"{self.rebuilt:.2f}", derived),
            *(str(p.backward_gflops), backward, f"{self.ours:.2f}", f"{self.ours_linear:.2f}"),
            *(f"{float(p.forward_gflops) / self.ours:.2f}", self.why),
        ]


def agrees(value: float, printed: Decimal) -> bool:
    """True if a value is the printed one when rounded to as many digits."""
    digit = float(Decimal(1).scaleb(int(printed.as_tuple().exponent)))
    return abs(value - float(printed)) <= 0.5 * digit + 1e-9


def read_table(path: Path = TABLE) -> list[Printed]:
    """The rows of the paper's table, or of another file with its columns."""
    rows = []
    for line, row in read_csv(path, [field.name for field in dataclasses.fields(Printed)]):
        model, *cells = row.values()
        try:
            numbers = [Decimal(cell) for cell in cells]
        except ArithmeticError as error:
            raise ValueError(f"{path}, line {line}: must hold numbers") from error
        params_m, accuracy, latency_ms = map(float, numbers[:3])
        rows.append(Printed(model, params_m, accuracy, latency_ms, *numbers[3:]))
    return rows


def rebuild(printed: Printed) -> Row:
    """The paper's figure by the reference's counter, ours, and what explains the difference."""
    if not printed.model.startswith("AdaPerceiver"):
        v = vit(printed.model)
        why = f"blocks x{v.block}, patch convolution x{v.patch_nesting}, head x{v.head_nesting}"
        if printed.model.startswith("Flex"):
            why += "; 240 px"
        elif printed.model.startswith("SoViT"):
            why += "; 256 px; dim 832, depth 21, FFN 2176, 1 register"
        elif printed.model.startswith(("MatViT", "HydraViT")):
            why += "; FFN cut to 4w" if printed.model.startswith("Mat") else "; all layers cut to w"
        if printed.model == MISPRINT:
            why += "; printed 0.1 too high, its backward fits"
        linear = 2 * v.linear()
        ours = linear + 2 * v.attention()
        return Row(printed, v.counted(), v.counted_backward(), ours, linear, why)
    tokens = int(printed.model.split("t=")[1].rstrip(")"))
    counted_tokens = 224 if tokens == 192 else tokens
    config = ap.AdaPerceiverConfig(block_mask="none" if "Bidir" in printed.model else "block")
    whole = ap.flops(config, tokens).total / 1e9
    linear = whole - products(config, tokens)
    why = NESTING if counted_tokens == tokens else f"{NESTING}, {counted_tokens} tokens"
    return Row(printed, classifier(counted_tokens), None, whole, linear, why)


def products(config: ap.AdaPerceiverConfig, tokens: int) -> float:
    """GFLOPs of the products of queries, keys and values: read, blocks, one written token."""
    read = 4 * tokens * (224 // config.patch_size) ** 2 * config.embed_dim
    write = 4 * config.num_heads * tokens * config.embed_dim
    return (read + ap.flops(config, tokens).by_part["attention"] + write) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the CSV (only printed)")
    options = parser.parse_args(arguments)
    lines = [rebuild(printed).cells() for printed in read_table()]
    print(markdown(COLUMNS, lines))
    write_csv(options.out, COLUMNS, lines)


if __name__ == "__main__":
    main()
