"""Where a NIfTI header places the voxels, and whether what it says agrees with itself.

A header may state the placement twice, as sform (an affine) and as qform (a rotation with spacing
`pixdim`), each with a code that says in whose coordinates, 0 if it is not stated at all. Where two
statements disagree in spacing, direction, handedness or position, no reader is right by itself.
"""

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from gct_jax.errors import InputError
from gct_jax.volumes.file_formats import PAIR, first_bytes, header_path, nifti_magic
from gct_jax.volumes.grid import affine_spacing, orthogonal_steps

UNIT_NAMES = {1: "metre", 2: "millimetre", 3: "micrometre"}
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}  # not stated, metre, millimetre, micrometre
LARGEST_CODE = 5
SPACING_TOLERANCE = 1e-3  # relative
DIRECTION_TOLERANCE = 2e-3  # radians: float32 quaternions of half a turn are that coarse
POSITION_TOLERANCE = 0.1  # of a voxel
HEADER_CLASSES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


class Placement(NamedTuple):
    """What a header says: affine [4, 4] from stored indices to RAS+ mm, the form it was taken from
    ("sform", "qform", or "none" if the file states none), that form's code, and the name of the
    unit of length ("" if it is not stated)."""

    affine: np.ndarray
    form: str
    code: int
    unit: str = ""


def read_header(path: Path) -> Any:
    """The header as its bytes say, nothing mended.

    Raises:
      InputError: the voxels would begin within the header.
    """
    file_path = header_path(path)
    start = first_bytes(file_path, 4)
    size = next((n for n in HEADER_CLASSES if n in (_size(start, "<"), _size(start, ">"))), 348)
    with ImageOpener(str(file_path)) as file:
        header = HEADER_CLASSES[size].from_fileobj(file, check=False)
    paired = nifti_magic(first_bytes(file_path, 540)) in PAIR
    offset = float(header["vox_offset"])
    if not (offset >= (0 if paired else size + 4)):  # NaN as well
        raise InputError(
            f"{path}: vox_offset = {offset:g} says that the voxels begin within the header of "
            f"{size} bytes; repair the header or convert the file anew"
        )
    return header


def _size(start: bytes, order: str) -> int:
    return int(np.frombuffer(start.ljust(4, b"\0"), f"{order}i4")[0])


def read_placement(
    path: Path,
    header: Any,
    form: str | None = None,
    spacing_is_stated: bool = False,
    shape: tuple[int, ...] = (2, 2, 2),
) -> Placement:
    """The one placement that a header states.

    Args:
      path: for messages.
      header: from `read_header`.
      form: "sform" or "qform" to trust that one; None requires that all statements agree.
      spacing_is_stated: by the user, so that disagreement in spacing alone does not matter.
      shape: of the stored volume.

    Raises:
      InputError: statements disagree, or there is no usable one; the message holds both values.
    """
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if not 0 <= code <= LARGEST_CODE and form in (None, name):
            raise InputError(f"{path}: {name}_code = {code} is no code of NIfTI; repair the header")
    if form is not None and not codes[form]:
        raise InputError(f"{path}: it states no {form} (code 0), so --form {form} cannot be used")
    mm = _mm_per_unit(path, header, spacing_is_stated)
    if spacing_is_stated:
        header = _with_usable_pixdim(header)
    unit = UNIT_NAMES.get(int(header["xyzt_units"]) & 7, "")
    pixdim = mm * np.array(header["pixdim"][1:4], float)
    stated = [form] if form else [name for name, code in codes.items() if code]
    if "sform" not in stated or (form is None and not spacing_is_stated):
        _require_positive(path, pixdim.tolist())
    affines = {name: _affine(path, header, name, mm) for name in stated}
    if not stated:
        base = np.diag([-pixdim[0], pixdim[1], pixdim[2], 1.0])  # the first axis to the left
        base[:3, 3] = -base[:3, :3] @ ((np.array(shape) - 1) / 2)
        return Placement(base, "none", 0, unit)
    for name in stated:
        others = [other for other, code in codes.items() if code and other != name]
        advice = f"repair the header{f' or give --form {others[0]}' if others else ''}"
        _require_places_voxels(path, name, affines[name], advice)
    if form is None:
        if "sform" in affines and "qform" not in affines and not spacing_is_stated:
            _require_same_spacing(path, "sform", affine_spacing(affines["sform"]), tuple(pixdim))
        if len(affines) == 2:
            _require_agreement(path, affines["sform"], affines["qform"], spacing_is_stated)
    return Placement(affines[stated[0]], stated[0], codes[stated[0]], unit)


def _mm_per_unit(path: Path, header: Any, spacing_is_stated: bool) -> float:
    code = int(header["xyzt_units"]) & 7
    if code not in MM_PER_UNIT and not spacing_is_stated:
        raise InputError(
            f"{path}: xyzt_units = {int(header['xyzt_units'])} names no unit of length; state the "
            "voxel spacing in mm with --spacing DEPTHxHEIGHTxWIDTH"
        )
    return MM_PER_UNIT.get(code, 1.0)


def _affine(path: Path, header: Any, form: str, mm: float) -> np.ndarray:
    header = header.copy()
    header["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0  # 0 counts as 1
    try:
        affine = header.get_sform() if form == "sform" else header.get_qform(coded=False)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        other = "qform" if form == "sform" else "sform"
        raise InputError(
            f"{path}: its {form} is unusable ({error}); repair the header or give --form {other}"
        ) from None
    affine = np.array(affine, float)
    affine[:3] *= mm
    return affine


def _require_positive(
    path: Path, spacing: list[float], advice: str = "repair the header or state --spacing"
) -> None:
    if not all(0 < length < np.inf for length in spacing):
        raise InputError(f"{path}: voxel spacing {spacing} is not positive; {advice}")


def _with_usable_pixdim(header: Any) -> Any:
    """The header with positive voxel sizes, for a caller who replaces them."""
    header = header.copy()
    pixdim = np.abs(header["pixdim"][1:4])
    header["pixdim"][1:4] = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1)
    return header


def _require_places_voxels(path: Path, form: str, affine: np.ndarray, advice: str) -> None:
    """Raise InputError unless every voxel has a place of its own."""
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the affine of its {form} has NaN or infinite values; {advice}")
    spacing = affine_spacing(affine)
    _require_positive(path, list(spacing), advice)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(spacing):
        raise InputError(f"{path}: two axes of its {form} are parallel; {advice}")


def _require_same_spacing(
    path: Path, first: str, spacing: tuple, pixdim: tuple, second: str = "pixdim"
) -> None:
    if not np.allclose(spacing, pixdim, rtol=SPACING_TOLERANCE, atol=0):
        advice = "sform or --form qform" if second == "qform" else "sform, or state --spacing"
        raise InputError(
            f"{path}: its {first} and {second} disagree in spacing: {_by(spacing)} mm and "
            f"{_by(pixdim)} mm; say which to trust with --form {advice}"
        )


def _require_agreement(
    path: Path, sform: np.ndarray, qform: np.ndarray, spacing_is_stated: bool
) -> None:
    trust = "say which to trust with --form sform or --form qform"
    if not spacing_is_stated:
        spacings = affine_spacing(sform), affine_spacing(qform)
        _require_same_spacing(path, "sform", spacings[0], spacings[1], "qform")
    axes = ["".join(nib.aff2axcodes(affine)) for affine in (sform, qform)]
    determinants = np.linalg.det(sform[:3, :3]), np.linalg.det(qform[:3, :3])
    if determinants[0] * determinants[1] < 0:
        raise InputError(
            f"{path}: its sform and qform disagree in handedness, {axes[0]} and {axes[1]}: one of "
            f"them exchanges two sides of the patient; {trust}"
        )
    turned = min(_angle(rigid, _unit(qform)) for rigid in _without_shear(sform))
    if turned > DIRECTION_TOLERANCE:
        raise InputError(
            f"{path}: its sform and qform disagree in direction by {np.degrees(turned):.2f} "
            f"degrees, {axes[0]} and {axes[1]}; {trust}"
        )
    apart = np.linalg.norm(sform[:3, 3] - qform[:3, 3])
    if apart > POSITION_TOLERANCE * min(affine_spacing(sform)):
        positions = [_by(affine[:3, 3]) for affine in (sform, qform)]
        raise InputError(
            f"{path}: its sform and qform disagree in the position of the first voxel: "
            f"({positions[0]}) and ({positions[1]}) mm; {trust}"
        )


def _unit(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / affine_spacing(affine)


def _without_shear(affine: np.ndarray) -> list[np.ndarray]:
    """The rotations that writers store as the qform of a sheared affine, for a qform has no shear:
    the nearest one, or the one that keeps the slices."""
    left, _, right = np.linalg.svd(_unit(affine))
    kept = orthogonal_steps(affine[:3, :3][:, ::-1])[:, ::-1]  # stored axes: slices come last
    return [left @ right, kept / np.linalg.norm(kept, axis=0)]


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """The largest angle between the columns of two rotations, in radians."""
    return float(2 * np.arcsin(np.clip(np.linalg.norm(first - second, axis=0).max() / 2, 0, 1)))


def _by(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
