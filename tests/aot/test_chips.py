"""Chips, and topologies by name."""

import types

import pytest

from adaperceiver_jax.aot.chips import CHIPS, parse_topology
from adaperceiver_jax.train.metrics import peak_flops


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("v5e:16x16", (16, 16)),
        ("v4:2x2x1", (2, 2, 1)),
        ("v5p:8x16x16", (8, 16, 16)),
        ("v6e:1x1", (1, 1)),
        ("v5e:2x4", (2, 4)),
    ],
)
def test_a_topology_is_read_from_its_name(name, sides):
    assert parse_topology(name) == (CHIPS[name[:3].rstrip(":")], sides)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v7x:2x2", "'v7x:2x2': the chip must be one of v4, v5e, v5p, v6e"),
        ("16x16", "must be one of"),
        ("v5e:4x4x4", "v5e takes 2 sides up to 16x16"),
        ("v4:4x4", "v4 takes 3 sides"),
        ("v5e:3x3", "the first two even, or 1x1"),
        ("v5e:32x8", "up to 16x16"),
        ("v5e:", "takes 2 sides"),
        ("v5e:0x4", "takes 2 sides"),
        ("v5e:axb", "takes 2 sides"),
    ],
)
def test_one_there_is_not_is_refused_with_what_there_is(name, said):
    with pytest.raises(ValueError, match=said):
        parse_topology(name)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v4", "v4"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_what_a_run_reports_its_mfu_against_is_the_same_chip(kind, chip):
    device = types.SimpleNamespace(device_kind=kind)
    assert peak_flops(device) == CHIPS[chip].flops
