"""Resampling between grids with physical spacing, on the host.

A new voxel at position p of an axis, in cells of the old grid, is

    y(p) = sum_i w((p - i) / k) x_i / sum_i w((p - i) / k),   w(u) = max(0, 1 - |u|)     (1)

with k = max(1, new spacing / old spacing): linear interpolation where the grid gets finer, and an
average over the new spacing, which does not alias, where it gets coarser.

The sums are sparse and run in a fixed order, so the result is the same on every processor and for
any number of threads: what is prepared from a CT is the same bytes wherever it was prepared.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse

from gct_jax.volumes.grid import Spacing
from gct_jax.volumes.intensity import AIR_HU


def resample(
    volume_hu: np.ndarray,
    spacing_mm: Spacing,
    new_shape: tuple[int, int, int],
    new_spacing_mm: Spacing,
    fill: float = AIR_HU,
    *,
    offset_mm: Spacing = (0.0, 0.0, 0.0),
    slices: Sequence[int] | None = None,
) -> np.ndarray:
    """Equation (1) along each axis, onto a grid with the same axis directions.

    Voxels are cells: a grid of n cells with spacing s covers n * s millimetres, so a smaller new
    field crops and a larger one is padded.

    Args:
      volume_hu: [depth, height, width], any real type.
      spacing_mm: distance between voxel centres along the same axes.
      new_shape: (depth, height, width) of the result.
      new_spacing_mm: its spacing.
      fill: value of voxels whose centre lies outside the old field.
      offset_mm: from the old grid's centre to the new one's, along the old axes.
      slices: indices along the new depth; only these are computed. None: all.

    Returns:
      float32 [depth, height, width] of `new_shape`, or its `slices`.
    """
    depth, rows, columns = (
        _weights(*axis)
        for axis in zip(
            volume_hu.shape, spacing_mm, new_shape, new_spacing_mm, offset_mm, strict=True
        )
    )
    rows, columns = rows.tocsr(), columns.tocsr()
    chosen = range(new_shape[0]) if slices is None else slices
    result = np.empty((len(chosen), *new_shape[1:]), np.float32)
    for row, target in zip(result, chosen, strict=True):
        image = np.zeros(volume_hu.shape[1:], np.float32)
        for k in range(depth.indptr[target], depth.indptr[target + 1]):
            old = volume_hu[depth.indices[k]].astype(np.float32)
            image += depth.data[k] * (old - np.float32(fill))
        row[:] = (columns @ (rows @ image).T).T
    result += np.float32(fill)
    return result


def _weights(
    old_count: int, old_mm: float, new_count: int, new_mm: float, offset_mm: float
) -> sparse.csr_array:
    """Normalised weights of equation (1), float32 [new, old]; rows outside the old field are 0."""
    step = new_mm / old_mm
    positions = (np.arange(new_count) - (new_count - 1) / 2) * step
    positions += (old_count - 1) / 2 + offset_mm / old_mm
    width = max(step, 1.0)
    reach = int(np.ceil(width)) + 1
    old = np.rint(positions).astype(int)[:, None] + np.arange(-reach, reach + 1)
    weights = np.maximum(0.0, 1 - np.abs(positions[:, None] - old) / width)
    tolerance = 1e-6  # a centre on the field's edge is inside
    inside = (positions >= -0.5 - tolerance) & (positions <= old_count - 0.5 + tolerance)
    weights *= (old >= 0) & (old < old_count) & inside[:, None]
    total = weights.sum(axis=1, keepdims=True)
    weights /= np.where(total > 0, total, 1.0)
    number = np.broadcast_to(np.arange(new_count)[:, None], old.shape)
    used = weights > 0
    entries = (weights[used].astype(np.float32), (number[used], old[used]))
    return sparse.csr_array(entries, shape=(new_count, old_count))


def resample_to_affine(
    volume_hu: np.ndarray,
    affine: np.ndarray,
    new_affine: np.ndarray,
    new_shape: tuple[int, int, int],
    fill: float = AIR_HU,
) -> np.ndarray:
    """Linear interpolation between two grids of about the same spacing, wherever they lie.

    Args:
      volume_hu: [depth, height, width], any real type.
      affine: [4, 4] from its indices to millimetres; need not be orthogonal.
      new_affine: the same of the result.
      new_shape: (depth, height, width) of the result.
      fill: value outside the old field.

    Returns:
      float32 [depth, height, width] of `new_shape`.
    """
    to_old = np.linalg.inv(affine) @ new_affine  # indices to indices
    return ndimage.affine_transform(
        np.asarray(volume_hu, np.float32),
        to_old[:3, :3],
        to_old[:3, 3],
        output_shape=new_shape,
        order=1,
        mode="constant",
        cval=fill,
    )
