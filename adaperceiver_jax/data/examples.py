"""tf.train.Example, the record that TFDS writes and we too, without TensorFlow or protobuf.

An Example is a map from names to lists of bytes, floats or whole numbers, in protobuf's encoding:
fields are (number << 3 | kind), then a varint (kind 0), eight bytes (1), a length and so many bytes
(2), or four bytes (5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Value = bytes | int | np.ndarray
"""A list of one string or number as itself, a longer one as an array."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_STRINGS, _FLOATS, _INTS = 1, 2, 3  # the numbers of a Feature's three kinds of lists


def encode(features: Mapping[str, bytes | str | int]) -> bytes:
    """The record of some strings and whole numbers."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, int):
            feature = _field(_INTS, _field(1, _varint(value & (2**64 - 1))))
        else:
            data = value.encode() if isinstance(value, str) else value
            feature = _field(_STRINGS, _field(1, data))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def decode(record: bytes) -> dict[str, Value]:
    """What a record holds, by its names; ValueError if it is no Example."""
    features: dict[str, Value] = {}
    try:
        for entries in _all(record, 1):
            for entry in _all(entries, 1):
                (name,), (feature,) = list(_all(entry, 1)), list(_all(entry, 2)) or [b""]
                features[name.decode()] = _value(feature)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"is no tf.train.Example: {error}") from error
    if not features:
        raise ValueError("is no tf.train.Example: it has no features")
    return features


def _value(feature: bytes) -> Value:
    """Of a Feature: one of the three kinds of lists, whose items are its field 1."""
    for number, _, content in _fields(feature):
        items = [(kind, item) for inner, kind, item in _fields(content) if inner == 1]
        if number == _FLOATS:  # packed or one by one, they are the same bytes
            return np.frombuffer(b"".join(item for _, item in items), "<f4").astype(np.float32)
        values: list[Any] = [item for _, item in items]
        if number == _INTS:
            packed = [_varints(item) if kind == _BYTES else [_signed(item)] for kind, item in items]
            values = [value for part in packed for value in part]
        return values[0] if len(values) == 1 else np.array(values)
    return b""


def _varint(n: int) -> bytes:
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _signed(n: int) -> int:
    return n - 2**64 if n >= 2**63 else n


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    n = shift = 0
    while True:
        byte = data[at]
        at += 1
        n |= (byte & 127) << shift
        if byte < 128:
            return n, at
        shift += 7


def _varints(data: bytes) -> list[int]:
    values, at = [], 0
    while at < len(data):
        n, at = _read_varint(data, at)
        values.append(_signed(n))
    return values


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, kind, content) of each field."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            content: Any
            content, at = _read_varint(data, at)
        else:
            if kind == _BYTES:
                size, at = _read_varint(data, at)
            elif kind in (_EIGHT, _FOUR):
                size = 8 if kind == _EIGHT else 4
            else:
                raise ValueError(f"field {number} is of the unknown kind {kind}")
            if at + size > len(data):
                raise ValueError(f"field {number} goes beyond the end")
            content, at = data[at : at + size], at + size
        yield number, kind, content


def _all(data: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of all fields of a number."""
    for number, kind, content in _fields(data):
        if number == wanted and kind == _BYTES:
            yield content
