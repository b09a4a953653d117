"""Results as CSV: a column a field, a line each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_rows(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """The content of a CSV file of dataclass instances, these fields of them; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = ((name, getattr(row, name)) for name in columns)
        writer.writerow({n: f"{v:.7g}" if isinstance(v, float) else v for n, v in values})
    return text.getvalue()
