"""A synthetic chest in HU and the files it comes in."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (40, 64, 64)  # depth, height, width
SPACING_MM = (8.0, 6.0, 6.0)


def chest(shape=SHAPE, spacing_mm=SPACING_MM, shift_mm=(0.0, 0.0, 0.0), seed=0):
    """float32 [depth, height, width] in HU: a body of 320 x 240 mm with two lungs, the right one
    larger, over the middle of the depth."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2) * mm - off
        for n, mm, off in zip(shape, spacing_mm, shift_mm, strict=True)
    )
    z, y, x = z[:, None, None], y[None, :, None], x[None, None]
    volume = np.full(shape, -1000.0)
    volume[np.broadcast_to((x / 160) ** 2 + (y / 120) ** 2 < 1, shape)] = 40
    for centre, radius in ((-70.0, 55.0), (70.0, 45.0)):
        lung = ((x - centre) / radius) ** 2 + (y / 80) ** 2 + (z / 110) ** 2 < 1
        volume[lung] = -850
    volume += np.random.default_rng(seed).normal(0, 8, shape)
    return np.float32(volume.clip(-1024, 3000))


def affine(shape=SHAPE, spacing_mm=SPACING_MM):
    """Of the volume as `save` stores it, RAS: x to the right ... z to the head."""
    result = np.diag([*spacing_mm[::-1], 1.0])
    result[:3, 3] = -(np.array(shape[::-1]) - 1) / 2 * spacing_mm[::-1]
    return result


def save(path: Path, volume=None, dtype=np.int16, spacing_mm=SPACING_MM, matrix=None):
    """Write a volume [depth, height, width] of internal axes as NIfTI in RAS."""
    volume = chest() if volume is None else volume
    # Internal axes: height to the back, width to the left.
    stored = np.asarray(volume)[:, ::-1, ::-1].transpose(2, 1, 0)
    place = affine(volume.shape, spacing_mm) if matrix is None else matrix
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stored.astype(dtype), place)
    image.header.set_xyzt_units("mm")
    image.set_sform(place, 1)
    image.set_qform(place, 1, strip_shears=True)
    nib.save(image, path)
    return path
