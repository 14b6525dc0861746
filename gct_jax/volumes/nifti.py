"""CT volumes in NIfTI files: any orientation in, RAS out, Hounsfield units on both sides.

A file's affine maps voxel indices to millimetres in a right-handed world whose axes point to the
patient's right-to-left R+, posterior-to-anterior A+ and inferior-to-superior S+ ends. An oblique
volume is not resampled on reading: its axes are taken for the nearest anatomical ones and its
affine is kept.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError

from gct_jax.errors import InputError
from gct_jax.runtime.files import replace_when_done, require_file

INTERNAL_AXES = "SPL"  # [depth, height, width]
LOWEST_HU = -1024.0  # scanners mark voxels outside the field of view by less, down to -8192
MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 1e-3}
UNREADABLE = (  # what nibabel raises on files that are damaged in different places
    OSError,
    EOFError,
    KeyError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT in internal axes.

    Attributes:
      volume_hu: float32 [depth, height, width] in HU, at least -1024.
      affine: float64 [4, 4], maps (depth, height, width, 1) indices to RAS+ millimetres.
      stored_axes: the directions in which the file's own three axes grow, e.g. "LAS".
      oriented: False if the file states no orientation, so that `affine` is a guess.
    """

    volume_hu: np.ndarray
    affine: np.ndarray
    stored_axes: str
    oriented: bool = True

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along depth, height and width."""
        return affine_spacing(self.affine)


def affine_spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel spacing along the three axes of a [4, 4] affine, in the affine's unit."""
    depth, height, width = np.linalg.norm(affine[:3, :3], axis=0)
    return float(depth), float(height), float(width)


def centred_affine(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Affine [4, 4] of an unrotated internal-axes grid whose centre is the world's origin.

    Args:
      shape: (depth, height, width).
      spacing_mm: distance between voxel centres along the same axes.
    """
    directions = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    return _affine_about(np.zeros(3), directions * spacing_mm, shape)


def regrid_affine(
    affine: np.ndarray,
    shape: tuple[int, ...],
    new_shape: tuple[int, ...],
    new_spacing_mm: tuple[float, float, float],
) -> np.ndarray:
    """Affine of a grid with the same centre and axis directions as the grid (affine, shape)."""
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    return _affine_about(
        centre, affine[:3, :3] / affine_spacing(affine) * new_spacing_mm, new_shape
    )


def _affine_about(centre: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = centre - steps @ ((np.array(shape) - 1) / 2)
    return affine


def read_volume(path: str | Path) -> CTVolume:
    """Read a CT from `.nii` or `.nii.gz`.

    The header's slope and intercept are applied once, values below -1024 HU (padding) become
    -1024, and axes are flipped and permuted, never interpolated, to the internal order. Trailing
    axes of length 1 are dropped: the geometry is then still unambiguous.

    Raises:
      InputError: the file is missing, damaged or not NIfTI; is not one 3-D volume; has a spacing
        that is not positive, or NaN or infinite values; or its values cannot be Hounsfield units.
    """
    path = Path(path)
    require_file(path)
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                while file.read(1 << 24):  # to the end, where the checksum is; nibabel stops before
                    pass
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise ImageFileError("not a NIfTI file")
        affine = _file_affine(path, image)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 2:
            raise InputError(
                f"{path}: shape {' x '.join(map(str, image.shape))} is not one 3-D volume"
            )
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{path}: voxels of type {image.get_data_dtype()} are not a CT")
        volume = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable NIfTI volume ({reason})") from error

    require_hounsfield(volume, str(path))
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(INTERNAL_AXES)))
    return CTVolume(
        volume_hu=np.maximum(apply_orientation(volume, transform), LOWEST_HU, order="C"),
        affine=affine @ inv_ornt_aff(transform, shape),
        stored_axes="".join(nib.aff2axcodes(affine)),
        oriented=bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0),
    )


def _file_affine(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """The file's affine in millimetres, float64 [4, 4], or InputError if it places no voxels."""
    with ImageOpener(str(path)) as file:  # nibabel mends a bad pixdim on loading: look at the bytes
        pixdim = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not np.isfinite(image.affine).all():
        raise InputError(f"{path}: the affine has NaN or infinite values; repair the header")
    of_affine = affine_spacing(image.affine)
    for spacing in (pixdim.tolist(), list(of_affine)):
        if not all(length > 0 for length in spacing):
            raise InputError(f"{path}: voxel spacing {spacing} is not positive; repair the header")
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-3 * np.prod(of_affine):
        raise InputError(f"{path}: two axes of the affine are parallel; repair the header")
    to_mm = np.diag([MM_PER_UNIT[image.header.get_xyzt_units()[0]]] * 3 + [1.0])
    return to_mm @ image.affine


def require_hounsfield(volume_hu: np.ndarray, name: str) -> None:
    """Raise InputError unless the values can be a CT of the body in Hounsfield units.

    Such a volume has air or lung (-1020 to -300 HU) and fat or soft tissue (-300 to 300 HU), each
    in more than one voxel of 200. Padding (-1024 HU and less) does not count as air.
    """
    low, high = float(volume_hu.min()), float(volume_hu.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name}: has NaN or infinite voxels")
    air = np.mean((volume_hu > -1020) & (volume_hu < -300))
    tissue = np.mean(np.abs(volume_hu) <= 300)
    if air > 0.005 and tissue > 0.005:
        return
    if low == high:
        reason = "all voxels are equal"
    elif low >= -1 and high <= 1:
        reason = "the values look scaled to a unit range; multiply them back to HU"
    elif low >= 0 and high <= 255:
        reason = "the values look like 8-bit grey levels"
    elif air <= 0.005:
        reason = "there is no air or lung; was the rescale intercept left out?"
    else:
        reason = "there is no soft tissue; was the rescale intercept applied twice?"
    raise InputError(f"{name}: values from {low:g} to {high:g} are not HU: {reason}")


def write_volume(
    path: str | Path, volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> None:
    """Write an internal-axes volume in RAS order, its centre at the world's origin.

    Args:
      path: ends in `.nii` or `.nii.gz`; replaced as a whole or left as it was.
      volume_hu: [depth, height, width] in HU; rounded and stored as int16.
      spacing_mm: distance between voxel centres along the same axes.

    Raises:
      InputError: another suffix, values that are not finite, or a path that cannot be written.
    """
    write_placed_volume(path, volume_hu, centred_affine(volume_hu.shape, spacing_mm))


def write_placed_volume(
    path: str | Path, volume_hu: np.ndarray, affine: np.ndarray, axes: str = "RAS"
) -> None:
    """Write an internal-axes volume where `affine` places it, stored with the given axes.

    Args:
      path: ends in `.nii` or `.nii.gz`; replaced as a whole or left as it was.
      volume_hu: [depth, height, width] in HU; rounded and stored as int16, slope 1, intercept 0.
      affine: [4, 4] from (depth, height, width) indices to RAS+ mm, as `CTVolume.affine`.
      axes: directions in which the three stored axes grow, as `CTVolume.stored_axes`.

    Raises:
      InputError: another suffix, values that are not finite, or a path that cannot be written.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: the name of a volume must end in .nii or .nii.gz")
    if not np.isfinite(volume_hu).all():
        raise InputError(f"{path}: not written, the volume has NaN or infinite voxels")
    limits = np.iinfo(np.int16)
    stored = np.rint(volume_hu).clip(limits.min, limits.max).astype(np.int16)
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axes)))
    stored = apply_orientation(stored, transform)

    image = nib.Nifti1Image(stored, affine @ inv_ornt_aff(transform, volume_hu.shape))
    image.header.set_slope_inter(1.0, 0.0)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    with replace_when_done(path) as temporary:
        nib.save(image, temporary)
