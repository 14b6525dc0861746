"""CT volumes in NIfTI files: any orientation in, RAS out, Hounsfield units on both sides.

A file's affine maps voxel indices to millimetres in a right-handed world whose axes point to the
patient's right-to-left R+, posterior-to-anterior A+ and inferior-to-superior S+ ends. Whatever was
not read as it stands is told in `CTVolume.notes`.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError

from gct_jax.errors import InputError
from gct_jax.runtime.files import replace_when_done
from gct_jax.volumes.canonical import CTVolume, canonical, internal_order, require_field
from gct_jax.volumes.file_formats import data_path, header_path, require_nifti
from gct_jax.volumes.grid import (
    Spacing,
    affine_about,
    affine_spacing,
    by,
    centred_affine,
    grid_centre,
    is_orthogonal,
)
from gct_jax.volumes.nifti_header import read_header, read_placement
from gct_jax.volumes.plausibility import (
    is_hounsfield,
    require_hounsfield,
)

SCANNER_CODE = 1
DESCRIPTION_BYTES = 79
UNREADABLE = (  # what nibabel raises on files that are damaged in different places
    OSError,
    EOFError,
    KeyError,
    ValueError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)


def read_volume(
    path: str | Path,
    *,
    form: str | None = None,
    spacing_mm: Spacing | None = None,
    trust_spacing: bool = False,
    require_orientation: bool = False,
    rescale: tuple[float, float] | None = None,
    default_axes: str = "LAS",
) -> CTVolume:
    """Read a CT from a NIfTI file: `.nii`, `.nii.gz` or a pair `.hdr`, `.img`.

    The header's slope and intercept are applied once, values below -1024 HU (padding) become
    -1024, and axes are flipped and permuted to the internal order; only sheared axes are
    interpolated. Trailing axes of length 1 are dropped: the geometry is then still unambiguous.

    Args:
      path: the file.
      form: "sform" or "qform" to trust that one where the header's two placements disagree.
      spacing_mm: (depth, height, width) to use instead of the file's.
      trust_spacing: accept a field of view that no chest CT has.
      require_orientation: refuse a file that states no orientation.
      rescale: (slope, intercept) that turn the file's values into HU; left alone, with a note, if
        they are HU as they stand.
      default_axes: directions of the file's axes if it states none.

    Raises:
      InputError: the file is missing, damaged or of another format; is not one 3-D volume; places
        its voxels in doubtful or contradictory ways; has NaN or infinite values; or its values
        cannot be Hounsfield units. The message says what was read and what to do.
    """
    path = Path(path)
    require_nifti(path)
    try:
        header = read_header(path)
        volume = _voxels(path)
        placement = read_placement(path, header, form, spacing_mm is not None, volume.shape)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable NIfTI volume ({reason})") from error
    if placement.form == "none" and require_orientation:
        raise InputError(
            f"{path}: it states no orientation (sform and qform have code 0); without "
            "--require-orientation it would be read as LAS"
        )
    notes: list[str] = []
    if rescale is not None:
        volume, told = _rescaled(volume, *rescale)
        notes += told
    require_hounsfield(volume, str(path))
    if placement.form == "none" and default_axes != "LAS":
        placement = placement._replace(affine=_turned(placement.affine, default_axes, volume.shape))
    axes = "".join(nib.aff2axcodes(placement.affine))
    if placement.form == "none":
        nibabel = ", as nibabel does" if axes == "LAS" else ""
        notes.append(f"it states no orientation; its axes were taken for {axes}{nibabel}")
    affine = placement.affine
    if spacing_mm is not None:
        affine, note = _with_spacing(affine, volume.shape, spacing_mm)
        notes.append(note)
    if not trust_spacing:
        unit = "" if spacing_mm is not None else placement.unit
        require_field(volume.shape, affine, str(path), unit)
    return canonical(volume, affine, placement.form, placement.code, notes)


def stated_spacing(path: str | Path, form: str | None = None) -> Spacing | None:
    """(depth, height, width) in mm as the file's header says; None if it says nothing usable."""
    path = Path(path)
    try:
        require_nifti(path)
        affine = read_placement(path, read_header(path), form).affine
    except (InputError, *UNREADABLE):
        return None
    depth, height, width = np.array(affine_spacing(affine))[
        np.argsort(internal_order(affine)[:, 0])
    ].tolist()
    return depth, height, width


def _rescaled(volume: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, list[str]]:
    """Values in HU, and a note if they were that already."""
    if (slope, intercept) == (1.0, 0.0):
        return volume, []
    if is_hounsfield(volume):
        return volume, [
            f"its values are HU already; slope {slope:g} and intercept {intercept:g} left out"
        ]
    volume *= np.float32(slope)
    volume += np.float32(intercept)
    return volume, []


def _with_spacing(
    affine: np.ndarray, shape: tuple[int, ...], spacing_mm: Spacing
) -> tuple[np.ndarray, str]:
    """The affine with (depth, height, width) as stated, and a note."""
    order = internal_order(affine)[:, 0].astype(int)  # of each axis of the file
    stated = np.array(spacing_mm)[order]
    note = (
        f"spacing {by(spacing_mm, 4)} mm as stated, instead of "
        f"{by(tuple(np.array(affine_spacing(affine))[np.argsort(order)].tolist()), 4)}"
    )
    steps = affine[:3, :3] / affine_spacing(affine) * stated
    return affine_about(grid_centre(affine, shape), steps, shape), note


def _turned(affine: np.ndarray, axes: str, shape: tuple[int, ...]) -> np.ndarray:
    """An affine with the same spacing and centre whose axes grow towards `axes`."""
    order = axcodes2ornt(tuple(axes)).astype(int)
    steps = np.zeros((3, 3))
    for axis, (world, direction) in enumerate(order):
        steps[world, axis] = direction * np.linalg.norm(affine[:3, axis])
    return affine_about(grid_centre(affine, shape), steps, shape)


def _voxels(path: Path) -> np.ndarray:
    """Values of the file, float32 [i, j, k], its scaling applied."""
    with LoggingOutputSuppressor():  # what is wrong with a header is told by `read_placement`
        image = _load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise ImageFileError("not a NIfTI file")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputError(f"{path}: shape {by(image.shape, 4)} is not one 3-D volume")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {image.get_data_dtype()} are not a CT")
    return image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)


def _load(path: Path) -> Any:
    """nibabel's image. A compressed one is unpacked to its end, where the checksum is."""
    if path.suffix != ".gz":
        return nib.load(path)
    if path.name.endswith((".img.gz", ".hdr.gz")):
        for part in (header_path(path), data_path(path)):
            gzip.decompress(part.read_bytes())
        return nib.load(path)
    with gzip.open(path) as file:
        content = file.read()
    newer = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    return (nib.Nifti2Image if newer else nib.Nifti1Image).from_bytes(content)


def write_volume(path: str | Path, volume_hu: np.ndarray, spacing_mm: Spacing) -> None:
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
    path: str | Path,
    volume_hu: np.ndarray,
    affine: np.ndarray,
    stored_order: np.ndarray | None = None,
    form_code: int = SCANNER_CODE,
    description: str = "",
) -> None:
    """Write an internal-axes volume where `affine` places it; sform and qform say the same.

    Args:
      path: ends in `.nii` or `.nii.gz`; replaced as a whole or left as it was.
      volume_hu: [depth, height, width] in HU; rounded and stored as int16, slope 1, intercept 0.
      affine: [4, 4] with orthogonal axes, as `CTVolume.affine`.
      stored_order: of the file's axes, as `CTVolume.stored_order`; None stores RAS.
      form_code: of both forms; 0 stores the spacing alone, as in a file that states no orientation.
      description: kept in the header's field `descrip`.

    Raises:
      InputError: another suffix, sheared axes, values that are not finite, or a path that cannot be
        written.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: the name of a volume must end in .nii or .nii.gz")
    if not np.isfinite(volume_hu).all():
        raise InputError(f"{path}: not written, the volume has NaN or infinite voxels")
    if not is_orthogonal(affine, volume_hu.shape):
        raise InputError(f"{path}: not written, the axes of the affine are not at right angles")
    limits = np.iinfo(np.int16)
    stored = np.rint(volume_hu).clip(limits.min, limits.max).astype(np.int16)
    if stored_order is None:
        stored_order = ornt_transform(io_orientation(affine), axcodes2ornt(tuple("RAS")))
    stored = apply_orientation(stored, stored_order)
    affine = affine @ inv_ornt_aff(stored_order, volume_hu.shape)

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(stored.shape)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    header.set_zooms(affine_spacing(affine))
    if form_code:
        header.set_qform(affine)
        header.set_sform(affine)
    header["qform_code"] = header["sform_code"] = form_code
    with replace_when_done(path) as temporary:
        nib.save(nib.Nifti1Image(stored, None, header), temporary)
