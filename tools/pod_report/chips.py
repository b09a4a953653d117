"""TPUs as their maker publishes them: speed, memory and interconnect of a chip."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaperceiver_jax.train.chips import PEAK_FLOPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPU: the figures of one chip."""

    flops: float
    """bfloat16 multiplications and additions per second."""
    hbm: float
    """GiB that the compiler gives a program; of the 16, 32 or 95 there are it keeps a part."""
    hbm_bandwidth: float
    """Bytes per second."""
    ici_bandwidth: float
    """Bytes per second that a chip sends, over all its links."""
    torus: int
    """Axes of the interconnect: two links per axis."""
    ring: int
    """A side of so many chips closes in a ring, shorter ones are rows; in three dimensions where
    all sides are multiples of it."""
    mxu: int
    """Rows and columns of a matrix unit: shorter matrices are padded to them."""
    largest: tuple[int, ...]
    """Largest slice that can be rented, in chips per axis."""
    host: int
    """Chips of the largest slice that is one host; larger ones have hosts of four."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options for the compiler."""


# FLOP/s, HBM and interconnect: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e ("Peak compute per
# chip (bf16)", "HBM bandwidth", half of "Bidirectional inter-chip interconnect bandwidth"; v4's
# interconnect, six links of 50 GB/s, is in arXiv 2304.01433). The HBM a program may use is what
# libtpu 0.0.42.1 says when one does not fit.
CHIPS = {
    "v4": Chip(
        flops=PEAK_FLOPS["TPU v4"],
        hbm=30.75,
        hbm_bandwidth=1200e9,
        ici_bandwidth=300e9,
        torus=3,
        ring=4,
        mxu=128,
        largest=(16, 16, 16),
        host=4,
        # Its two cores run as one device on Cloud TPU; the compiler's default is one device each.
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        flops=PEAK_FLOPS["TPU v5e"],
        hbm=15.75,
        hbm_bandwidth=819e9,
        ici_bandwidth=200e9,
        torus=2,
        ring=16,
        mxu=128,
        largest=(16, 16),
        host=8,
    ),
    "v5p": Chip(
        flops=PEAK_FLOPS["TPU v5p"],
        hbm=95.74,
        hbm_bandwidth=2765e9,
        ici_bandwidth=600e9,
        torus=3,
        ring=4,
        mxu=128,
        largest=(16, 16, 24),
        host=4,
    ),
    "v6e": Chip(
        flops=PEAK_FLOPS["TPU v6e"],
        hbm=31.25,
        hbm_bandwidth=1638e9,
        ici_bandwidth=400e9,
        torus=2,
        ring=16,
        mxu=256,
        largest=(16, 16),
        host=8,
    ),
}
