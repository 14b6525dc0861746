"""Where the body and its lungs lie in a CT, well enough to cut the field around them.

    dense  = voxels above -350 HU, without what is thinner than 8 mm (the table, the blanket)  (1)
    body   = the largest connected piece of (1), slice by slice with its holes filled          (2)
    lungs  = voxels of (2) between -1020 and -500 HU                                           (3)

All of it on a grid of about 4 mm.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from gct_jax.volumes.grid import Spacing

COARSE_MM = 4.0
DENSE_HU, LUNG_HU, AIR_HU = -350.0, -500.0, -1020.0
LEAST_LUNG_SHARE = 0.1  # of the slice with most lung: less is an apex, a base or bowel
MM3_PER_LITRE = 1e6


class Body(NamedTuple):
    """Millimetres along depth, height and width from the middle of the field.

    box: (lowest, highest) of the body along each axis.
    lungs: (lowest, highest) of the lungs along the depth; None: no voxel of lung.
    lung_litres: volume of what looks like lung.
    """

    box: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    lungs: tuple[float, float] | None
    lung_litres: float


def find_body(volume_hu: np.ndarray, spacing_mm: Spacing) -> Body | None:
    """Equations (1) to (3), or None if nothing is as dense as a body.

    volume_hu: [depth, height, width] in HU.
    """
    strides = [max(1, int(COARSE_MM / spacing)) for spacing in spacing_mm]
    coarse = volume_hu[tuple(slice(stride // 2, None, stride) for stride in strides)]
    firm = ndimage.binary_opening(coarse > DENSE_HU, np.ones((1, 3, 3), bool))
    pieces, count = ndimage.label(firm)
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    body = np.stack([ndimage.binary_fill_holes(image) for image in pieces == largest])
    lungs = body & (coarse < LUNG_HU) & (coarse > AIR_HU)

    def place_mm(axis: int, first: int, last: int) -> tuple[float, float]:
        """Outer ends of coarse voxels first ... last."""
        stride, spacing = strides[axis], spacing_mm[axis]
        middle = volume_hu.shape[axis] * spacing / 2
        start = (stride // 2 - (stride - 1) / 2) * spacing  # of coarse voxel 0
        return start + first * stride * spacing - middle, (
            start + (last + 1) * stride * spacing - middle
        )

    def extent(mask: np.ndarray, axis: int) -> tuple[float, float]:
        others = tuple(i for i in range(3) if i != axis)
        found = np.flatnonzero(mask.any(axis=others))
        return place_mm(axis, int(found[0]), int(found[-1]))

    areas = lungs.sum(axis=(1, 2))
    slices = np.flatnonzero(areas > LEAST_LUNG_SHARE * areas.max())
    voxel_mm3 = float(np.prod(np.multiply(strides, spacing_mm)))
    return Body(
        (extent(body, 0), extent(body, 1), extent(body, 2)),
        place_mm(0, int(slices[0]), int(slices[-1])) if slices.size else None,
        float(areas.sum()) * voxel_mm3 / MM3_PER_LITRE,
    )
