"""Affines of voxel grids: [4, 4], from (depth, height, width) indices to RAS+ millimetres.

Grids that this project resamples to or writes have orthogonal axes, because NIfTI's qform, DICOM
and the readers of both know no others.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from gct_jax.errors import InputError

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
SLIGHT_SHEAR = 0.1  # of a voxel: what rounding in a header amounts to


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      shape: (depth, height, width).
      affine: float64 [4, 4] with orthogonal axes, maps (depth, height, width, 1) to RAS+ mm.
    """

    shape: Shape
    affine: np.ndarray

    @staticmethod
    def centred(shape: Shape, spacing_mm: Spacing) -> "Grid":
        """An unrotated grid whose centre is the world's origin."""
        return Grid(shape, centred_affine(shape, spacing_mm))

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between voxel centres along depth, height and width."""
        return affine_spacing(self.affine)

    def axes_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel centres along depth, height and width from the middle of the grid, float32, mm."""
        z, y, x = (
            ((np.arange(count) - (count - 1) / 2) * spacing).astype(np.float32)
            for count, spacing in zip(self.shape, self.spacing_mm, strict=True)
        )
        return z, y, x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Shape, bytes]:
        return self.shape, np.ascontiguousarray(self.affine, float).tobytes()

    @property
    def centre_mm(self) -> np.ndarray:
        """World coordinates [3] of the middle."""
        return grid_centre(self.affine, self.shape)

    def regrid(
        self, shape: Shape, spacing_mm: Spacing, centre_mm: np.ndarray | None = None
    ) -> "Grid":
        """A grid with the same axis directions, and the same centre if no other is given."""
        affine = regrid_affine(self.affine, self.shape, shape, spacing_mm)
        if centre_mm is not None:
            affine = affine_about(centre_mm, affine[:3, :3], shape)
        return Grid(shape, affine)


def affine_spacing(affine: np.ndarray) -> Spacing:
    """Voxel spacing along the three axes of a [4, 4] affine, in the affine's unit."""
    depth, height, width = np.linalg.norm(affine[:3, :3], axis=0)
    return float(depth), float(height), float(width)


def centred_affine(shape: tuple[int, ...], spacing_mm: Spacing) -> np.ndarray:
    """Affine [4, 4] of an unrotated internal-axes grid whose centre is the world's origin.

    Args:
      shape: (depth, height, width).
      spacing_mm: distance between voxel centres along the same axes.
    """
    directions = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    return affine_about(np.zeros(3), directions * spacing_mm, shape)


def regrid_affine(
    affine: np.ndarray,
    shape: tuple[int, ...],
    new_shape: tuple[int, ...],
    new_spacing_mm: Spacing,
) -> np.ndarray:
    """Affine of a grid with the same centre and axis directions as the grid (affine, shape)."""
    steps = affine[:3, :3] / affine_spacing(affine) * new_spacing_mm
    return affine_about(grid_centre(affine, shape), steps, new_shape)


def grid_centre(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World coordinates [3] of the middle of a grid."""
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def centre_offset_mm(source: Grid, grid: Grid) -> Spacing:
    """From the centre of `source` to that of `grid`, along the axes of `source`.

    Raises:
      InputError: their axes have other directions.
    """
    directions = source.affine[:3, :3] / source.spacing_mm
    if np.abs(directions - grid.affine[:3, :3] / grid.spacing_mm).max() > 1e-3:
        raise InputError("the grids' axes have other directions")
    between = grid_centre(grid.affine, grid.shape) - grid_centre(source.affine, source.shape)
    depth, height, width = directions.T @ between
    return float(depth), float(height), float(width)


def affine_about(centre: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Affine of a grid with this centre [3] and these steps [3, 3] from voxel to voxel."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = centre - steps @ ((np.array(shape) - 1) / 2)
    return affine


def orthogonal_steps(steps: np.ndarray) -> np.ndarray:
    """Steps [3, 3] with orthogonal columns (Gram-Schmidt).

    The slices stay as they are: width keeps its step, height what of its step is at right angles
    to width, and depth becomes the distance between slices. So a tilted gantry is set upright.
    """
    result = np.array(steps, float)
    for column, earlier in ((1, (2,)), (0, (2, 1))):
        for other in earlier:
            unit = result[:, other] / np.linalg.norm(result[:, other])
            result[:, column] -= unit * (unit @ result[:, column])
    return result


def shear_mm(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far a corner of the grid lies from that of the orthogonal grid with the same centre."""
    corners = (np.array(list(itertools.product((-1, 1), repeat=3))) * (np.array(shape) - 1) / 2).T
    moved = (affine[:3, :3] - orthogonal_steps(affine[:3, :3])) @ corners
    return float(np.linalg.norm(moved, axis=0).max())


def is_orthogonal(affine: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the axes are at right angles, but for rounding."""
    return shear_mm(affine, shape) <= SLIGHT_SHEAR * min(affine_spacing(affine))


def orthogonal_grid(affine: np.ndarray, shape: Shape) -> tuple[np.ndarray, Shape]:
    """Affine and shape of the orthogonal grid: the same one but for rounding, or, of a sheared
    grid, one that covers all of it."""
    steps, centre = orthogonal_steps(affine[:3, :3]), grid_centre(affine, shape)
    if not is_orthogonal(affine, shape):
        relative = np.linalg.inv(steps) @ affine[:3, :3]  # upper triangular but for the order
        extent = np.abs(relative) @ np.array(shape)
        depth, height, width = (max(2, int(n)) for n in np.ceil(extent - 1e-3))
        shape = (depth, height, width)
    return affine_about(centre, steps, shape), shape


def tilt_degrees(affine: np.ndarray) -> float:
    """The largest angle between an axis of the grid and the anatomical one it is taken for."""
    cosines = np.abs(affine[:3, :3] / affine_spacing(affine)).max(axis=0)
    return float(np.degrees(np.arccos(cosines.clip(0, 1)).max()))


def by(values: tuple, digits: int = 3) -> str:
    """For people: (9.0, 5.625) as "9 x 5.62"."""
    return " x ".join(
        f"{value:.{digits}g}" if isinstance(value, float) else str(value) for value in values
    )
