"""The text of a compiled program (`compiled.as_text()`) as computations, instructions, arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1.0),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
    **dict.fromkeys(("f32", "s32", "u32"), 4.0),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8.0),
    **dict.fromkeys(("s4", "u4"), 0.5),
    "c128": 16.0,
}
HBM, HOST = 0, 5
"""Memory spaces; others (S(1): vector memory) are on the chip itself."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One array: f32[16,256]{1,0:T(8,128)S(1)}."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.size * _width(self.dtype)

    @property
    def padded_bytes(self) -> float:
        """Bytes in memory, where the last axes are filled up to whole tiles."""
        lengths = [self.dims[axis] for axis in reversed(self.minor_to_major)]
        tile = self.tile[-len(lengths) :] if lengths else ()
        for place, side in enumerate(reversed(tile), 1):
            lengths[-place] = -(-lengths[-place] // side) * side
        return math.prod(lengths) * _width(self.dtype)

    @property
    def hbm_bytes(self) -> float:
        """Bytes of the chip's large memory; 0 for an array that is held on the chip itself."""
        return self.padded_bytes if self.space == HBM else 0.0


def _width(dtype: str) -> float:
    return BYTES.get(dtype, 1.0 if dtype.startswith("f8") else 0.0)  # 0: tokens


_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::((?:[A-Z]\([^)]*\)|\([^)]*\)|\*)*))?\})?")


@functools.lru_cache(maxsize=65536)
def parse_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type; those of a tuple in order."""
    found = []
    for dtype, dims, order, layout in _ARRAY.findall(text):
        lengths = _numbers(dims)
        minor_to_major = _numbers(order) or tuple(reversed(range(len(lengths))))
        tile = re.search(r"T\(([\d,]+)\)", layout)
        space = re.search(r"S\((\d+)\)", layout)
        tiles, where = _numbers(tile[1]) if tile else (), int(space[1]) if space else HBM
        found.append(Array(dtype, lengths, minor_to_major, tiles, where))
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """%name = type opcode(operands), attributes."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    """Text in the parentheses: a constant's value, a parameter's number."""
    attributes: str
    root: bool

    def attribute(self, name: str) -> str:
        """The text of name=..., '' where there is none."""
        found = re.search(rf"[ ,]{name}=(\{{[^}}]*\}}|\"[^\"]*\"|[^,\s]+)", self.attributes)
        return found[1] if found else ""

    def called(self, name: str) -> str:
        """The computation that an attribute names."""
        return self.attribute(name).lstrip("%")

    @functools.cached_property
    def target(self) -> str:
        """Name of the function that a custom call runs; '' for other instructions."""
        return self.attribute("custom_call_target").strip('"')

    @functools.cached_property
    def op_name(self) -> str:
        """Place in the JAX program that it comes from."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order they run."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Parameters in the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.literal)))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that take each."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                users[name].append(instruction)
        return users

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation
    aliased: frozenset[int]
    """Numbers of the parameters whose memory a result takes."""

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Computation, Instruction]]:
        """An instruction that runs each computation, and the computation in which it stands."""
        return {
            name: (computation, instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            for part in ("calls", "body", "condition", "to_apply")
            if (name := instruction.called(part))
        }

    def fused(self, instruction: Instruction) -> Computation | None:
        """The computation of a fusion or of an asynchronous start; None for other instructions."""
        if instruction.opcode in ("fusion", "async-start"):
            return self.computations[instruction.called("calls")]
        return None

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instructions of a fusion, however deep, with the computations they stand in."""
        computation = self.fused(instruction)
        if computation is None:
            return
        for inner in computation.instructions.values():
            yield computation, inner
            yield from self.inside(inner)


_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_TAIL = re.compile(r"\}(, execution_thread=.*)?$")


def parse(text: str) -> Module:
    """Reads a compiled program; ValueError if it is none."""
    computations: dict[str, Computation] = {}
    current: dict[str, Instruction] | None = None
    entry = ""
    for line in _whole_lines(text):
        if current is not None:
            if _TAIL.match(line):
                current = None
            elif found := _LINE.match(line):
                rest = re.sub(r"/\*.*?\*/", "", line[found.end() :])
                current[found[2]] = _instruction(found[2], rest, bool(found[1]))
        elif head := _HEAD.match(line):
            current = {}
            computations[head[2]] = Computation(head[2], current)
            entry = head[2] if head[1] else entry
    if not entry:
        raise ValueError("no compiled program: it has no ENTRY computation")
    header = text.partition("\n")[0]
    aliases = header.partition("input_output_alias={ ")[2].partition(" }, ")[0]
    numbers = re.findall(r": \((\d+), ", aliases)
    return Module(computations, computations[entry], frozenset(map(int, numbers)))


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, those of one instruction joined: a Pallas kernel's own description takes several."""
    held = ""
    for line in text.splitlines():
        begins = _LINE.match(line)
        if held and not begins and not _TAIL.match(line):
            held += f" {line}"
            continue
        if held:
            yield held
        held = line if begins else ""
        if not begins:
            yield line


def _instruction(name: str, line: str, root: bool) -> Instruction:
    end = _closed(line, 0) if line.startswith("(") else line.index(" ")
    kind, rest = line[:end], line[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closed(rest, len(opcode))
    inner = rest[len(opcode) + 1 : close - 1]
    operands = () if opcode in ("constant", "parameter") else tuple(_names(inner))
    return Instruction(name, parse_arrays(kind), opcode, operands, inner, rest[close:], root)


def _names(text: str) -> list[str]:
    """Names of operands, written with or without their types and %."""
    if "%" in text:
        return re.findall(r"%([\w.\-]+)", text)
    return [part.split()[-1] for part in text.split(", ") if part]


def _closed(text: str, start: int) -> int:
    """Place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"not an instruction: {text[:80]}")
