"""Speed of accelerators, as their makers publish it."""

from __future__ import annotations

import jax

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""bfloat16 FLOPs per second of one chip, by the beginning of its `device_kind`; for TPUs from
cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e."""


def peak_flops(device: jax.Device) -> float | None:
    """FLOPs per second of the device's bfloat16 matmuls; None where it is not known."""
    kinds = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(kinds, key=len)] if kinds else None
