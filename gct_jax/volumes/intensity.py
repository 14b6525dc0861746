"""Hounsfield units (HU) to and from the intensities that the networks see.

    CT-ViT and MaskGIT:                  v = clip(HU / 1000, -1, 1)              (1)
    published super-resolution U-Net:    u = (v + 1) / 2                         (2)

Every function takes NumPy or JAX arrays of any shape and returns the same kind of array.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import jax

Array = TypeVar("Array", np.ndarray, "jax.Array")

AIR_HU = -1000.0
WINDOWS_HU = {
    "raw": (-1000.0, 1000.0),
    "lung": (-1000.0, 150.0),
    "mediastinal": (-125.0, 225.0),
}


def to_unit(volume_hu: Array) -> Array:
    """HU to float32 in [-1, 1], equation (1)."""
    return (volume_hu.astype(np.float32) / 1000.0).clip(-1.0, 1.0)


def from_unit(volume: Array) -> Array:
    """Values in [-1, 1] to HU, float32; values outside are clipped first."""
    return volume.astype(np.float32).clip(-1.0, 1.0) * 1000.0


def to_int16_hu(volume: "np.ndarray | jax.Array") -> np.ndarray:
    """Values in [-1, 1] to whole HU, as files and prepared cases hold them."""
    return np.rint(from_unit(np.asarray(volume))).astype(np.int16)


def to_superres(volume_hu: Array) -> Array:
    """HU to float32 in [0, 1], equations (1) and (2)."""
    return (to_unit(volume_hu) + 1.0) / 2.0


def from_superres(volume: Array) -> Array:
    """Values in [0, 1] to HU, float32; values outside are clipped first."""
    return from_unit(volume.astype(np.float32) * 2.0 - 1.0)


def window_to_uint8(volume_hu: Array, window_hu: tuple[float, float]) -> Array:
    """Grey values: HU at or below the window's lower end are 0, at or above its upper end 255."""
    low, high = window_hu
    grey = (volume_hu.astype(np.float32) - low) / (high - low) * 255.0
    return grey.clip(0.0, 255.0).round().astype(np.uint8)
