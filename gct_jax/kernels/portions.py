"""In which portions and in which type a device works best.

Of the constants: 1 GB of activations fits beside the weights on a laptop; a U-Net in float32 was
found to hold up to 128 bytes per pixel of its finest level and channel.
"""

import math

import jax

from gct_jax.kernels.target import target_platform
from gct_jax.runtime.host import usable_cores

CPU_BYTES = 2**30
BYTES_PER_PIXEL_AND_CHANNEL = 128  # of the U-Net's activations in float32, at full resolution


def pixels_per_batch(dim: int) -> int:
    """Pixels of slices that a U-Net of width `dim` holds in about 1 GB, or on an accelerator in a
    quarter of its memory."""
    memory = CPU_BYTES
    if target_platform() != "cpu":
        memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 4 * CPU_BYTES) // 4
    return memory // (BYTES_PER_PIXEL_AND_CHANNEL * dim)


def batches(depth: int, most: int) -> tuple[int, int]:
    """Slices per U-Net call, and calls at the same time: in all at most `most`, at least 1.

    A CPU takes one slice per core, which stays in its cache; an accelerator one batch, as even as
    possible over `depth`.
    """
    most = max(1, most)
    if target_platform() == "cpu":
        return 1, min(most, usable_cores())
    return math.ceil(depth / math.ceil(depth / most)), 1


def best_dtype() -> str:
    """Type of computation that suits the device: bfloat16 on accelerators, float32 on a CPU."""
    return "float32" if target_platform() == "cpu" else "bfloat16"


def watching_costs_nothing() -> bool:
    """Whether a loop on the host over the decoding steps costs nothing against one program."""
    return target_platform() == "cpu"
