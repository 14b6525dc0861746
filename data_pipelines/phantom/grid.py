"""The voxel grid on which a phantom is rendered.

All grids share one isocentre, (0, 0, 0) mm, in the middle of the volume, so two grids with the
same field of view show the same patient at different resolution.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
    """Voxel counts and spacing; hashable, so it can be a static argument of `jax.jit`."""

    depth: int
    height: int
    width: int
    slice_spacing_mm: float
    pixel_spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels as (depth, height, width)."""
        return self.depth, self.height, self.width

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxel centres along depth, height, width."""
        return self.slice_spacing_mm, self.pixel_spacing_mm, self.pixel_spacing_mm

    def axes_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel centres z (feet to head), y (front to back), x (right to left), float32, mm."""
        z, y, x = (
            ((np.arange(count) - (count - 1) / 2) * spacing).astype(np.float32)
            for count, spacing in zip(self.shape, self.spacing_mm, strict=True)
        )
        return z, y, x


LOW_GRID = Grid(33, 64, 64, 9.0, 5.625)
HIGH_GRID = Grid(33, 256, 256, 9.0, 1.40625)
