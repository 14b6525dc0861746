"""What accelerators can do at most, from their vendors' data sheets."""

from collections.abc import Sequence
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Peak operations per second in bfloat16, and bytes per second of its memory."""

    flops: float
    bytes_per_second: float


# By how JAX names the device (`device_kind`); a GPU's name begins with one of these. Dense figures.
CHIPS = {
    "TPU v4": Chip(275e12, 1228e9),
    "TPU v5 lite": Chip(197e12, 819e9),
    "TPU v5": Chip(459e12, 2765e9),
    "TPU v6 lite": Chip(918e12, 1640e9),
    "NVIDIA A100": Chip(312e12, 2039e9),
    "NVIDIA H100": Chip(989e12, 3350e9),
    "NVIDIA H200": Chip(989e12, 4800e9),
    "NVIDIA B200": Chip(2250e12, 8000e9),
}


def chip(device_kind: str) -> Chip | None:
    """The chip of a device's kind, None if it is not known."""
    if device_kind in CHIPS:
        return CHIPS[device_kind]
    named = [name for name in CHIPS if name.startswith("NVIDIA") and device_kind.startswith(name)]
    return CHIPS[named[0]] if named else None


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Operations per second in bfloat16 that the devices can do at most together, None if one is
    not known."""
    chips = [chip(device.device_kind) for device in devices]
    known = [found.flops for found in chips if found is not None]
    return sum(known) if len(known) == len(chips) else None
