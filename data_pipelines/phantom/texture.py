"""Smooth random fields: sums of plane waves, evaluated as one matrix product.

    f(z, y, x) = sqrt(2 / n) sum_i cos(kz_i z + ky_i y + kx_i x + phase_i)               (1)

has unit variance. The exponential of the sum is the product of three exponentials, one per axis,
so no cosine is computed per voxel.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sample_waves(
    rng: np.random.Generator, count: int, wavelengths_mm: tuple[float, float]
) -> np.ndarray:
    """Plane waves in random directions, [count, 4] as kz, ky, kx (rad/mm) and phase."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength = rng.uniform(*wavelengths_mm, size=(count, 1))
    phase = rng.uniform(0, 2 * np.pi, size=(count, 1))
    return np.concatenate([2 * np.pi * direction / wavelength, phase], axis=1).astype(np.float32)


def evaluate_waves(waves: jax.Array, axes_mm: tuple[np.ndarray, ...]) -> jax.Array:
    """Equation (1) on a grid given by its z, y, x axes: [depth, height, width] float32."""
    z, y, x = (jnp.exp(1j * waves[:, i, None] * axis) for i, axis in enumerate(axes_mm))
    z = z * jnp.exp(1j * waves[:, 3, None])
    rows = jnp.einsum("nd,nh->dhn", z, y)
    rows = jnp.concatenate([rows.real, -rows.imag], axis=-1)
    columns = jnp.concatenate([x.real, x.imag], axis=0)
    return jnp.sqrt(2 / waves.shape[0]) * rows @ columns
