"""What accelerators can do at most, from their vendors' data sheets.

TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (peak compute, HBM capacity and bandwidth,
bidirectional inter-chip interconnect bandwidth per chip, of which half goes each way; dimensions of
the torus). GPUs: NVIDIA's data sheets of the SXM boards (dense figures, NVLink in both directions).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """Peak figures of one chip.

    flops: operations per second in bfloat16. bytes_per_second: of its memory. memory_bytes: its
    size. link_bytes_per_second: to other chips, in one direction, over all links together.
    torus: dimensions of the network of links; 0 if a switch connects every chip with every other.
    """

    flops: float
    bytes_per_second: float
    memory_bytes: float
    link_bytes_per_second: float
    torus: int

    @property
    def ring_bytes_per_second(self) -> float:
        """What a chip can send while it also receives, in a ring along one dimension of the
        torus."""
        return self.link_bytes_per_second / max(1, self.torus)


# By how JAX names the device (`device_kind`); a GPU's name begins with one of these. Dense figures.
CHIPS = {
    "TPU v4": Chip(275e12, 1228e9, 32 * GIB, 300e9, 3),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * GIB, 200e9, 2),
    "TPU v5": Chip(459e12, 2765e9, 95 * GIB, 600e9, 3),
    "TPU v6 lite": Chip(918e12, 1640e9, 32 * GIB, 400e9, 2),
    "NVIDIA A100": Chip(312e12, 2039e9, 80e9, 300e9, 0),
    "NVIDIA H100": Chip(989e12, 3350e9, 80e9, 450e9, 0),
    "NVIDIA H200": Chip(989e12, 4800e9, 141e9, 450e9, 0),
    "NVIDIA B200": Chip(2250e12, 8000e9, 180e9, 900e9, 0),
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
