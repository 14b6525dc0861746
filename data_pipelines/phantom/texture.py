"""Smooth random fields: sums of plane waves, evaluated as one matrix product.

    f(z, y, x) = sqrt(2 / n) sum_i cos(kz_i z + ky_i y + kx_i x + phase_i)               (1)

has unit variance. The exponential of a sum is the product of three exponentials, one per axis,
so no cosine is computed per voxel.
"""

import jax
import jax.numpy as jnp
import numpy as np

WAVES = 18
# Shortest and longest wavelength of each field, mm.
FIELDS = {"coarse": (70, 140), "patch": (24, 50), "cell": (14, 26), "fine": (6, 12)}


def sample_waves(rng: np.random.Generator) -> np.ndarray:
    """Plane waves in random directions, [fields, WAVES, 4]: kz, ky, kx (rad/mm) and phase."""
    direction = rng.normal(size=(len(FIELDS), WAVES, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    low, high = np.array(list(FIELDS.values())).T[:, :, None, None]
    wavelength = rng.uniform(low, high, size=(len(FIELDS), WAVES, 1))
    phase = rng.uniform(0, 2 * np.pi, size=(len(FIELDS), WAVES, 1))
    return np.concatenate([2 * np.pi * direction / wavelength, phase], axis=-1)


def evaluate_waves(
    waves: jax.Array, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, jax.Array]:
    """Equation (1) on a grid given by its z, y, x axes: each field [depth, height, width]."""
    angles = [waves[:, None, :, i] * axis[:, None] for i, axis in enumerate(axes_mm)]
    angles[0] = angles[0] + waves[:, None, :, 3]  # each [fields, points on the axis, waves]
    (cos_z, sin_z), (cos_y, sin_y), (cos_x, sin_x) = ((jnp.cos(a), jnp.sin(a)) for a in angles)
    cos_z, sin_z, cos_y, sin_y = (
        cos_z[:, :, None],
        sin_z[:, :, None],
        cos_y[:, None],
        sin_y[:, None],
    )
    real, imaginary = cos_z * cos_y - sin_z * sin_y, sin_z * cos_y + cos_z * sin_y
    rows = jnp.concatenate([real, -imaginary], axis=-1)  # [fields, depth, height, 2 waves]
    columns = jnp.concatenate([cos_x, sin_x], axis=-1)
    fields = jnp.sqrt(2 / WAVES) * jnp.einsum("fdhn,fwn->fdhw", rows, columns)
    return dict(zip(FIELDS, fields, strict=True))
