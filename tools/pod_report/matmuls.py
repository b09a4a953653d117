"""FLOPs of a compiled program's matrix products, which XLA mostly writes as convolutions."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from tools.pod_report.hlo import Array, Computation, Instruction

PASSES = {"highest": 6, "high": 3}
"""Products of bfloat16 parts that one of float32 takes on a matrix unit, by its precision; those at
the default precision are rounded to bfloat16 and take one."""


@dataclasses.dataclass(frozen=True)
class Product:
    """`groups` products of (rows, inner) with (inner, columns)."""

    groups: int
    rows: int
    inner: float
    """Mean over the results, for a convolution that is more than a product in disguise."""
    columns: int
    passes: int
    """Times that it goes through the matrix unit."""

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2 * self.groups * self.rows * self.inner * self.columns

    def padded_flops(self, mxu: int) -> float:
        """FLOPs of one pass with the matrix unit's tiles filled up, the better way round.

        The unit holds a (mxu, mxu) tile of one matrix; rows of the other stream by, eight at once.
        """
        rows, columns = self.rows, self.columns
        best = min(_up(rows, 8) * _up(columns, mxu), _up(columns, 8) * _up(rows, mxu))
        return 2 * self.groups * best * _up(self.inner, mxu)


def _up(length: float, unit: int) -> int:
    return math.ceil(length / unit) * unit


def product(computation: Computation, instruction: Instruction) -> Product | None:
    """The product that a `dot` or `convolution` is; None for anything else."""
    if instruction.opcode not in ("dot", "convolution"):
        return None
    left, right = (operand.arrays[0] for operand in computation.operands(instruction))
    made = _dot if instruction.opcode == "dot" else _convolution
    return made(instruction, left, right, _passes(instruction, (left, right)))


def _passes(instruction: Instruction, operands: Sequence[Array]) -> int:
    wanted = instruction.attribute("operand_precision").strip("{}").split(",")
    floats = [operand.dtype == "f32" for operand in operands]
    most = max((PASSES.get(name, 1) for name in wanted), default=1)
    if not any(floats):
        return 1
    return most if all(floats) else math.ceil(most / 2)


def _dot(instruction: Instruction, left: Array, right: Array, passes: int) -> Product:
    def lengths(side: str, array: Array) -> tuple[int, int, int]:
        batch, inner = (
            math.prod(
                array.dims[int(axis)]
                for axis in re.findall(r"\d+", instruction.attribute(f"{side}_{kind}_dims"))
            )
            for kind in ("batch", "contracting")
        )
        return batch, inner, array.size // max(1, batch * inner)

    groups, inner, rows = lengths("lhs", left)
    return Product(groups, rows, inner, lengths("rhs", right)[2], passes)


def _convolution(instruction: Instruction, left: Array, right: Array, passes: int) -> Product:
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    assert labels is not None, instruction.name
    out = instruction.arrays[0]
    at = {
        **_places("in_", labels[1], left),
        **_places("kernel_", labels[2], right),
        **_places("out_", labels[3], out),
    }
    groups = max(
        int(instruction.attribute(name) or 1)
        for name in ("feature_group_count", "batch_group_count")
    )
    rows, inner, columns = at["out_b"], float(at["kernel_i"]), at["out_f"] // groups
    for axis, window in enumerate(_windows(instruction, len(labels[1]) - 2)):
        entering, leaving = at[f"in_{axis}"], at[f"out_{axis}"]
        met = window.pairs(entering, leaving)
        if entering == window.size == leaving == met:  # an axis of the batch in disguise
            groups *= leaving
        elif entering == 1:  # an axis that only the second matrix has
            columns, inner = columns * leaving, inner * met / leaving
        else:
            rows, inner = rows * leaving, inner * met / leaving
    return Product(groups, rows, inner, columns, passes)


def _places(prefix: str, labels: str, array: Array) -> dict[str, int]:
    return {prefix + label: size for label, size in zip(labels, array.dims, strict=True)}


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution's window along one axis."""

    size: int = 1
    stride: int = 1
    low: int = 0
    """Padding before the first."""
    spread: int = 1
    """Distance between entries of the input; what lies between is zero."""
    kernel_spread: int = 1

    def pairs(self, entering: int, leaving: int) -> int:
        """Products along the axis that are not with padding or with the zeros between."""
        count = 0
        for out in range(leaving):
            first = out * self.stride - self.low
            for tap in range(self.size):
                place = first + tap * self.kernel_spread
                count += place % self.spread == 0 and 0 <= place // self.spread < entering
        return count


def _windows(instruction: Instruction, axes: int) -> list[Window]:
    text = instruction.attribute("window").strip("{}")
    given = dict(part.split("=") for part in text.split())

    def numbers(name: str, default: str) -> list[str]:
        return given[name].split("x") if name in given else [default] * axes

    names = dict(size="1", stride="1", pad="0_0", lhs_dilate="1", rhs_dilate="1")
    columns = (numbers(name, default) for name, default in names.items())
    return [
        Window(*(int(number.split("_")[0]) for number in row)) for row in zip(*columns, strict=True)
    ]
