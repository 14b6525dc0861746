"""CT volumes in NIfTI files: any orientation in, RAS out, Hounsfield units on both sides.

A file's affine maps voxel indices to millimetres in a right-handed world whose axes point to the
patient's right-to-left R+, posterior-to-anterior A+ and inferior-to-superior S+ ends. An oblique
volume is not resampled on reading: its axes are taken for the nearest anatomical ones and its
affine is kept. A sheared one (a tilted gantry, an affine registration) is resampled onto orthogonal
axes. Whatever was not read as it stands is told in `CTVolume.notes`.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

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
from gct_jax.volumes.file_formats import require_nifti
from gct_jax.volumes.grid import (
    Spacing,
    affine_about,
    affine_spacing,
    by,
    centred_affine,
    grid_centre,
    is_orthogonal,
    orthogonal_grid,
    shear_mm,
    tilt_degrees,
)
from gct_jax.volumes.nifti_header import read_header, read_placement
from gct_jax.volumes.plausibility import require_field_of_view, require_hounsfield

INTERNAL_AXES = "SPL"  # [depth, height, width]
LOWEST_HU = -1024.0  # scanners mark voxels outside the field of view by less, down to -8192
NOTABLE_TILT_DEGREES = 20.0
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


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT in internal axes.

    Attributes:
      volume_hu: float32 [depth, height, width] in HU, at least -1024.
      affine: float64 [4, 4] with orthogonal axes, maps (depth, height, width, 1) to RAS+ mm.
      stored_axes: the directions in which the file's own three axes grow, e.g. "LAS".
      stored_order: int [3, 2]; for each of depth, height and width the axis of the file and 1 or -1
        for its direction there.
      form: "sform", "qform" or "none", where the file says it lies; "none": `affine` is a guess.
      form_code: NIfTI's code of that form, 0 for "none".
      notes: sentences on what was not read as it stands.
    """

    volume_hu: np.ndarray
    affine: np.ndarray
    stored_axes: str
    stored_order: np.ndarray
    form: str
    form_code: int
    notes: tuple[str, ...] = ()

    @property
    def oriented(self) -> bool:
        """False if the file states no orientation."""
        return self.form != "none"

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between voxel centres along depth, height and width."""
        return affine_spacing(self.affine)


def read_volume(
    path: str | Path,
    *,
    form: str | None = None,
    spacing_mm: Spacing | None = None,
    trust_spacing: bool = False,
    require_orientation: bool = False,
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
    require_hounsfield(volume, str(path))
    transform = ornt_transform(io_orientation(placement.affine), axcodes2ornt(tuple(INTERNAL_AXES)))
    affine = placement.affine @ inv_ornt_aff(transform, volume.shape)
    volume = apply_orientation(volume, transform)
    axes = "".join(nib.aff2axcodes(placement.affine))
    notes = []
    if placement.form == "none":
        notes.append(f"it states no orientation; its axes were taken for {axes}, as nibabel does")
    if spacing_mm is not None:
        notes.append(
            f"spacing {by(spacing_mm, 4)} mm as stated, instead of {by(affine_spacing(affine), 4)}"
        )
        steps = affine[:3, :3] / affine_spacing(affine) * spacing_mm
        affine = affine_about(grid_centre(affine, volume.shape), steps, volume.shape)
    unit = "" if spacing_mm is not None else placement.unit
    if not trust_spacing:
        require_field_of_view(volume.shape, affine_spacing(affine), str(path), unit)
        upright_affine, upright_shape = orthogonal_grid(affine, volume.shape)
        require_field_of_view(upright_shape, affine_spacing(upright_affine), str(path), unit)
    volume, affine, resampled = _upright(volume, affine)
    if tilt_degrees(affine) > NOTABLE_TILT_DEGREES:
        notes.append(
            f"its axes lie up to {tilt_degrees(affine):.0f} degrees off the patient's; the model "
            "sees it turned by as much"
        )
    return CTVolume(
        volume_hu=np.maximum(volume, LOWEST_HU, order="C"),
        affine=affine,
        stored_axes=axes,
        stored_order=_inverse(transform),
        form=placement.form,
        form_code=placement.code,
        notes=(*notes, *resampled),
    )


def _voxels(path: Path) -> np.ndarray:
    """Values of the file, float32 [i, j, k], its scaling applied."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 24):  # to the end, where the checksum is; nibabel stops before
                pass
    with LoggingOutputSuppressor():  # what is wrong with a header is told by `read_placement`
        image = nib.load(path)
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


def _upright(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Volume and affine on orthogonal axes, and a note if that took resampling."""
    new_affine, new_shape = orthogonal_grid(affine, volume.shape)
    if is_orthogonal(affine, volume.shape):
        return volume, new_affine, ()
    from gct_jax.volumes.resample import resample_to_affine

    note = (
        f"its axes are sheared by up to {shear_mm(affine, volume.shape):.1f} mm; resampled to "
        f"{by(new_shape, 4)} voxels of {by(affine_spacing(new_affine), 4)} mm on orthogonal axes"
    )
    resampled = resample_to_affine(volume, affine, new_affine, new_shape, fill=LOWEST_HU)
    return np.asarray(resampled), new_affine, (note,)


def _inverse(transform: np.ndarray) -> np.ndarray:
    """The way back of an orientation transform [3, 2]."""
    inverse = np.empty((3, 2), int)
    for axis, (target, direction) in enumerate(transform.astype(int)):
        inverse[target] = axis, direction
    return inverse


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
