"""Whether a volume can be a CT of a body: its values in HU, and its size in millimetres."""

import numpy as np

from gct_jax.errors import InputError
from gct_jax.volumes.grid import Spacing

SMALLEST_FIELD_MM, LARGEST_FIELD_MM = 80.0, 1000.0  # in the plane of a slice
LONGEST_MM = 2500.0  # along the depth
LEAST_SHARE = 0.005  # of the voxels
UNIT_FACTORS = (
    (1e-3, "are the units micrometres instead of millimetres?"),
    (1e3, "are the units metres instead of millimetres?"),
    (10.0, "are the units centimetres instead of millimetres?"),
    (0.1, "is the spacing ten times too large?"),
    (1e6, "are the units metres, read as micrometres?"),
    (1e-6, "are the units micrometres, read as metres?"),
)


def require_field_of_view(
    shape: tuple[int, ...], spacing_mm: Spacing, name: str, unit: str = ""
) -> None:
    """Raise InputError unless (depth, height, width) voxels can hold a body: 80 to 1,000 mm in the
    plane of a slice, at most 2.5 m along the depth.

    unit: of length that the file states, for the message.
    """
    size_mm = np.multiply(shape, spacing_mm)
    if _fits(size_mm):
        return
    likely = [cause for factor, cause in UNIT_FACTORS if _fits(factor * size_mm)]
    cause = likely[0] if likely else "is the spacing in the header right?"
    if unit not in ("", "millimetre"):
        cause = f"is the header's unit, {unit}, right?"
    read = " x ".join(f"{length:,.4g}" for length in size_mm)
    raise InputError(
        f"{name}: the volume is {read} mm (depth x height x width), which no chest CT is: {cause} "
        "State another with --spacing DEPTHxHEIGHTxWIDTH, or accept it with --trust-spacing"
    )


def _fits(size_mm: np.ndarray) -> bool:
    depth, *plane = size_mm
    return depth <= LONGEST_MM and all(SMALLEST_FIELD_MM <= x <= LARGEST_FIELD_MM for x in plane)


def is_hounsfield(volume_hu: np.ndarray) -> bool:
    """Whether the values can be a CT of the body in Hounsfield units: air or lung (-1020 to -300
    HU) and fat or soft tissue (-300 to 300 HU), each in more than one voxel of 200. Padding (-1024
    HU and less) does not count as air."""
    air, tissue = _shares(volume_hu)
    return air > LEAST_SHARE and tissue > LEAST_SHARE


def _shares(volume_hu: np.ndarray) -> tuple[float, float]:
    """Of air and of tissue."""
    air = np.count_nonzero((volume_hu > -1020) & (volume_hu < -300))
    tissue = np.count_nonzero((volume_hu >= -300) & (volume_hu <= 300))
    return air / volume_hu.size, tissue / volume_hu.size


def require_hounsfield(volume_hu: np.ndarray, name: str) -> None:
    """Raise InputError unless the values are finite and `is_hounsfield`."""
    low, high = float(volume_hu.min()), float(volume_hu.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name}: has NaN or infinite voxels; replace them, for instance by -1024")
    if is_hounsfield(volume_hu):
        return
    if low == high:
        reason = "all voxels are equal"
    elif low >= -1 and high <= 1:
        reason = "the values look scaled to a unit range; multiply them back to HU"
    elif low >= 0 and high <= 255:
        reason = "the values look like 8-bit grey levels"
    elif high > 32767:
        reason = "negative values seem to have been stored as unsigned numbers; convert it anew"
    elif _shares(volume_hu)[0] <= LEAST_SHARE:
        reason = "there is no air or lung; was the rescale intercept left out?"
    else:
        reason = "there is no soft tissue; was the rescale intercept applied twice?"
    raise InputError(f"{name}: values from {low:g} to {high:g} are not HU: {reason}")
