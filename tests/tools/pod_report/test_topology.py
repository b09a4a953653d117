"""Topologies by name."""

import math
import types

import pytest

from tools.pod_report.chips import CHIPS
from tools.pod_report.topology import Topology, parse_topology

pytestmark = pytest.mark.nightly(group="pods")


def test_a_topology_is_read_from_its_name():
    for name, sides in {"v4:2x2x1": (2, 2, 1), "v6e:1x1": (1, 1), "v5e:2x4": (2, 4)}.items():
        assert parse_topology(name) == (CHIPS[name.partition(":")[0]], sides)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v7x:2x2", "'v7x:2x2': the chip must be one of v4, v5e, v5p, v6e"),
        ("v5e:4x4x4", "v5e takes 2 sides up to 16x16"),
        ("v5e:3x3", "the first two even, or 1x1"),
        ("v5e:32x8", "up to 16x16"),
        ("v5e:", "takes 2 sides"),
        ("v5e:0x4", "takes 2 sides"),
        ("v5litepod-8", "say v5e:2x4"),
        ("v5p-128", "say v5p:4x4x4"),  # named by cores, two a chip
        ("v5e-100", "must be one of"),
    ],
)
def test_one_there_is_not_is_refused_with_what_there_is(name, said):
    with pytest.raises(ValueError, match=said):
        parse_topology(name)


def test_eight_chips_of_a_small_slice_are_one_host():
    for name, hosts in {"v5e:2x4": 1, "v5e:4x4": 4, "v4:2x2x1": 1, "v4:2x2x2": 2}.items():
        chip, sides = parse_topology(name)
        devices = [types.SimpleNamespace(process_index=n // 4) for n in range(math.prod(sides))]
        assert Topology(name, chip, tuple(devices)).hosts == hosts
