"""The patient's pose: from scanner to patient coordinates and back.

    patient = R (scanner - shift) + bend(R (scanner - shift))                            (1)

R turns about the body axis; the bend is a sum of products of sines, a few mm high and so smooth
that its inverse is its negative to within a fraction of a mm.
"""

import jax
import jax.numpy as jnp

from data_pipelines.phantom.shapes import Points
from gct_jax.volumes.grid import Grid

PERIODS_MM = (45.0, 60.0, 60.0)  # of the bend along z, y, x, divided by 2 pi


def patient_points(anatomy, grid: Grid) -> Points:
    """Voxel centres of a grid in the patient's frame, each [depth, height, width]."""
    shift = anatomy["shift"]
    z, y, x = (jnp.asarray(axis) - shift[2 - i] for i, axis in enumerate(grid.axes_mm()))
    bend_x, bend_y = jnp.einsum("ond,onh,onw->odhw", *_waves(anatomy, z, y, x))
    x, y = _turn(anatomy["rotation"], x, y[:, None])
    z = jnp.broadcast_to(z[:, None, None], grid.shape)
    return Points(x + bend_x, y + bend_y, z, grid.spacing_mm[2])


def to_scanner(anatomy, ends: jax.Array) -> jax.Array:
    """Capsule ends [n, 6] from the patient's to the scanner's frame, the inverse of (1)."""
    points = ends.reshape(-1, 3)
    x, y, z = points.T
    bend_x, bend_y = jnp.prod(jnp.stack(_waves(anatomy, z, y, x)), 0).sum(1)
    x, y = _turn(-anatomy["rotation"], x - bend_x, y - bend_y)
    return (jnp.stack([x, y, z], 1) + anatomy["shift"]).reshape(-1, 6)


def _turn(angle, x, y):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _waves(anatomy, z, y, x) -> list[jax.Array]:
    """The factors of the bend along each axis, [outputs, waves, points]."""
    waves = anatomy["bend"]  # [outputs, waves, 4] height in mm and three phases
    height = waves[..., 0, None]
    return [
        (height if i == 0 else 1.0) * jnp.sin(axis / PERIODS_MM[i] + waves[..., i + 1, None])
        for i, axis in enumerate((z, y, x))
    ]
