"""CT volumes prepared exactly as GenerateCT's PyTorch datasets prepare them.

Published weights were trained on such volumes, so fine-tuning or scoring them needs the same. The
recipe ignores spacing and orientation (the file's first axis becomes the rows), applies header and
metadata scaling one after the other and cuts a metadata slope to an integer; new models should be
fed through `gct_jax.volumes.nifti.read_volume` and `resample` instead.

    HU = int(slope) * voxel + int(intercept)                                     (1)
    v = clip(HU, -1000, 1000) / 1000                                             (2)

Every slice is resized by Pillow (bilinear, averaging when it shrinks), the stack linearly in depth
(half-voxel centres, no averaging).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done

SLICES = 201
CTVIT_SIZE = 128
SUPERRES_SIZE = 512
FEWEST_SLICES, MOST_SLICES = 100, 600  # the datasets disagree on the ends; here both are accepted
REVERSED_MANUFACTURER = "PNMS"  # stores slices from head to feet


def read_metadata(volume_path: str | Path) -> dict[str, Any]:
    """The DICOM fields in `<name>_metadata.json` beside `<name>.nii.gz`."""
    name = Path(volume_path).name.removesuffix(".nii.gz")
    path = Path(volume_path).with_name(f"{name}_metadata.json")
    return json.loads(path.read_text(encoding="utf-8"))


def accepted(slices: int) -> bool:
    """Whether the datasets keep a volume with so many slices."""
    return FEWEST_SLICES <= slices <= MOST_SLICES


def load_ctvit_volume(
    path: str | Path,
    metadata: Mapping[str, Any],
    slices: int = SLICES,
    image_size: int = CTVIT_SIZE,
) -> np.ndarray:
    """The volume that CT-ViT and MaskGIT train on.

    Args:
      path: a NIfTI file.
      metadata: its DICOM fields; RescaleSlope, RescaleIntercept and Manufacturer are used.
      slices: depth of the result.
      image_size: rows and columns of the result.

    Returns:
      float32 [depth, rows, columns] in [-1, 1]; rows follow the file's first axis.
    """
    voxels = nib.Nifti1Image.from_filename(path).get_fdata()  # [X, Y, Z], header scaling applied
    slope, intercept = (int(float(metadata[f"Rescale{name}"])) for name in ("Slope", "Intercept"))
    unit = np.clip(voxels * slope + intercept, -1000, 1000) / 1000
    stack = np.moveaxis(unit.astype(np.float32), 2, 0)  # [Z, X, Y]
    if metadata.get("Manufacturer") == REVERSED_MANUFACTURER:
        stack = stack[::-1]
    return _resize(stack, slices, image_size)


def load_superres_volume(
    path: str | Path,
    metadata: Mapping[str, Any],
    slices: int = SLICES,
    image_size: int = SUPERRES_SIZE,
) -> np.ndarray:
    """The high-resolution target: as `load_ctvit_volume`, in [0, 1]."""
    volume = load_ctvit_volume(path, metadata, slices, image_size)
    volume += 1
    volume /= 2
    return volume


def load_low_res_volume(path: str | Path) -> np.ndarray:
    """Read a CT-ViT output written by `write_low_res_volume`.

    Returns:
      float32 [depth, rows, columns], (v + 1) / 2 of the stored values, not clipped.
    """
    stored = nib.Nifti1Image.from_filename(path).get_fdata(
        dtype=np.float32
    )  # [columns, rows, depth]
    return (stored.transpose(2, 1, 0) + 1) / 2


def write_low_res_volume(path: str | Path, volume: np.ndarray) -> None:
    """Write CT-ViT output where the super-resolution dataset looks for it.

    The file holds no geometry (an identity affine) and no HU: use `gct_jax.volumes.nifti` for
    anything but feeding the reference.

    Args:
      path: the NIfTI file to write.
      volume: [depth, rows, columns] in [-1, 1].
    """
    stored = np.asarray(volume, np.float32).transpose(2, 1, 0)
    with replace_when_done(path) as temporary:
        nib.save(nib.Nifti1Image(stored, np.eye(4)), temporary)


def usable_slices(slices: int, patch: int) -> int:
    """Slices that remain when the end is cut to 1 + a multiple of the temporal patch.

    Raises:
      ConfigError: no slices, or a patch below 1.
    """
    if slices < 1 or patch < 1:
        raise ConfigError(f"{slices} slices in patches of {patch}: both must be at least 1")
    return slices - (slices - 1) % patch


def resize_slice(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pillow's bilinear resize of a float32 [rows, columns] image."""
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (columns, rows), Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def _resize(stack: np.ndarray, slices: int, image_size: int) -> np.ndarray:
    """float32 [depth, rows, columns] -> [slices, image_size, image_size]."""
    resized = [resize_slice(image, image_size, image_size) for image in stack]
    last = len(resized) - 1
    volume = np.empty((slices, image_size, image_size), np.float32)
    for i in range(slices):
        position = min(max((i + 0.5) * len(resized) / slices - 0.5, 0), last)
        below = int(position)
        weight = np.float32(position - below)
        volume[i] = resized[below] + weight * (resized[min(below + 1, last)] - resized[below])
    return volume
