"""Resampling between grids with physical spacing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.volumes.intensity import AIR_HU


def resample(
    volume_hu: np.ndarray | jax.Array,
    spacing_mm: tuple[float, float, float],
    new_shape: tuple[int, int, int],
    new_spacing_mm: tuple[float, float, float],
    fill: float = AIR_HU,
) -> jax.Array:
    """Linear interpolation onto a grid with the same centre and axis directions.

    Voxels are cells: a grid of n cells with spacing s covers n * s millimetres, so a smaller new
    field crops and a larger one is padded. Along an axis with a coarser spacing the kernel widens
    to the new spacing, which averages instead of aliasing.

    Args:
      volume_hu: [depth, height, width], any real type.
      spacing_mm: distance between voxel centres along the same axes.
      new_shape: (depth, height, width) of the result.
      new_spacing_mm: its spacing.
      fill: value of voxels whose centre lies outside the old field.

    Returns:
      float32 [depth, height, width] of `new_shape`.
    """
    scale = np.divide(spacing_mm, new_spacing_mm)
    # centres of both grids coincide: new = scale * old + translation in cell coordinates
    translation = (np.array(new_shape) - scale * np.array(volume_hu.shape)) / 2
    return _resample(
        jnp.asarray(volume_hu),
        tuple(new_shape),
        scale.astype(np.float32),
        translation.astype(np.float32),
        fill,
    )


@functools.partial(jax.jit, static_argnums=1)
def _resample(
    volume: jax.Array,
    new_shape: tuple[int, int, int],
    scale: jax.Array,
    translation: jax.Array,
    fill: float,
) -> jax.Array:
    shifted = volume.astype(jnp.float32) - fill  # what lies outside counts as 0 below
    resampled = jax.image.scale_and_translate(
        shifted, new_shape, (0, 1, 2), scale, translation, method="linear", antialias=True
    )
    return resampled + fill


def resample_to_affine(
    volume_hu: np.ndarray | jax.Array,
    affine: np.ndarray,
    new_affine: np.ndarray,
    new_shape: tuple[int, int, int],
    fill: float = AIR_HU,
) -> jax.Array:
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
    return _resample_slices(
        jnp.asarray(volume_hu, jnp.float32), jnp.asarray(to_old, jnp.float32), new_shape, fill
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _resample_slices(
    volume: jax.Array, to_old: jax.Array, new_shape: tuple[int, int, int], fill: float
) -> jax.Array:
    depth, height, width = new_shape
    rows, columns = jnp.indices((height, width), dtype=jnp.float32)

    def one_slice(index: jax.Array) -> jax.Array:  # a slice at a time, which bounds the memory
        steps = [index * to_old[i, 0] + rows * to_old[i, 1] for i in range(3)]
        places = [steps[i] + columns * to_old[i, 2] + to_old[i, 3] for i in range(3)]
        return jax.scipy.ndimage.map_coordinates(volume, places, order=1, cval=fill)

    return jax.lax.map(one_slice, jnp.arange(depth, dtype=jnp.float32))
