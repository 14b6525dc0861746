"""A CT in internal axes, whatever the file it came from stored.

An oblique volume is not resampled: its axes are taken for the nearest anatomical ones and its
affine is kept. A sheared one (a tilted gantry, an affine registration) is resampled onto orthogonal
axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from gct_jax.volumes.grid import (
    Spacing,
    affine_spacing,
    by,
    is_orthogonal,
    orthogonal_grid,
    shear_mm,
    tilt_degrees,
)
from gct_jax.volumes.plausibility import require_field_of_view

INTERNAL_AXES = "SPL"  # [depth, height, width]
LOWEST_HU = -1024.0  # scanners mark voxels outside the field of view by less, down to -8192
NOTABLE_TILT_DEGREES = 20.0


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


def internal_order(affine: np.ndarray) -> np.ndarray:
    """Orientation transform [3, 2] of nibabel from stored to internal axes."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(tuple(INTERNAL_AXES)))


def require_field(shape: tuple[int, ...], affine: np.ndarray, name: str, unit: str = "") -> None:
    """Raise InputError unless the stored grid, set upright too, can hold a body.

    shape, affine: of the stored axes. unit: of length that the file states, for the message.
    """
    transform = internal_order(affine)
    affine = affine @ inv_ornt_aff(transform, shape)
    shape = tuple(int(shape[i]) for i in np.argsort(transform[:, 0]))
    require_field_of_view(shape, affine_spacing(affine), name, unit)
    depth, height, width = shape
    upright_affine, upright_shape = orthogonal_grid(affine, (depth, height, width))
    require_field_of_view(upright_shape, affine_spacing(upright_affine), name, unit)


def canonical(
    volume_hu: np.ndarray,
    affine: np.ndarray,
    form: str,
    form_code: int,
    notes: Sequence[str] = (),
) -> CTVolume:
    """Turn a stored volume into internal axes; values below -1024 HU (padding) become -1024.

    Args:
      volume_hu: float32 [i, j, k] in HU.
      affine: [4, 4] from its indices to RAS+ mm.
      form, form_code, notes: see `CTVolume`; more notes may be added.
    """
    transform = internal_order(affine)
    axes = "".join(nib.aff2axcodes(affine))
    affine = affine @ inv_ornt_aff(transform, volume_hu.shape)
    volume, affine, resampled = _upright(apply_orientation(volume_hu, transform), affine)
    told = list(notes)
    if tilt_degrees(affine) > NOTABLE_TILT_DEGREES:
        told.append(
            f"its axes lie up to {tilt_degrees(affine):.0f} degrees off the patient's; the model "
            "sees it turned by as much"
        )
    return CTVolume(
        volume_hu=np.maximum(volume, LOWEST_HU, order="C"),
        affine=affine,
        stored_axes=axes,
        stored_order=_inverse(transform),
        form=form,
        form_code=form_code,
        notes=(*told, *resampled),
    )


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
