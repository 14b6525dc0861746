"""Analytic shapes on a voxel grid: signed distances in mm and the share of a voxel they cover.

A surface at signed distance s (negative inside) covers of a voxel of extent e along its normal

    c = clip(1/2 - s / e, 0, 1)                                                         (1)

and a capsule of radius r at axis distance a, which may be thinner than the voxel,

    c = clip(1/2 + (r - a) / e, 0, min(1, 2 r / e)).                                    (2)

Along the body axis e is the slice thickness, in plane the pixel spacing; between them
e = sqrt((n_xy pixel)^2 + (n_z thickness)^2) for the unit normal n.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

SLICE_THICKNESS_MM = 5.0


class Points(NamedTuple):
    """Voxel centres in the patient's frame, mm, each [depth, height, width]; `pixel` in mm."""

    x: jax.Array
    y: jax.Array
    z: jax.Array
    pixel: float

    def extent(self, normal_z: jax.Array | float) -> jax.Array:
        """Voxel extent along a unit normal of which only the z component matters."""
        squared = jnp.square(normal_z)
        return jnp.sqrt(self.pixel**2 * (1 - squared) + SLICE_THICKNESS_MM**2 * squared)


def cover(distance: jax.Array, extent: jax.Array | float) -> jax.Array:
    """Share of a voxel inside a surface, equation (1)."""
    return jnp.clip(0.5 - distance / extent, 0.0, 1.0)


def blend(background: jax.Array, value: jax.Array | float, share: jax.Array) -> jax.Array:
    """Paints `value` over `background` where `share` is 1."""
    return background + (value - background) * share


def superellipse(x, y, half_x, half_y, roundness):
    """Radial distance to u^4 + v^4 + roundness u^2 v^2 = 1 with u = x / half_x, v = y / half_y.

    Roundness 2 is an ellipse, smaller is squarer. Works on NumPy and JAX arrays alike.
    """
    xp = x.__array_namespace__()
    u, v = xp.square(x / half_x), xp.square(y / half_y)
    radius = xp.sqrt(xp.sqrt(u * u + v * v + roundness * u * v) + 1e-9)
    return xp.sqrt(x * x + y * y) * (1 - 1 / radius)


def ellipsoid(points, shape):
    """Approximate signed distance and the normal's z component, for NumPy or JAX points.

    Args:
      points: with x, y, z that broadcast together.
      shape: [15] centre (x, y, z), half-axes, then the rows of the rotation into its own frame.
    """
    xp = points.x.__array_namespace__()
    offset = points.x - shape[0], points.y - shape[1], points.z - shape[2]
    inner = outer = normal_z = 0.0
    for axis in range(3):
        row = shape[6 + 3 * axis : 9 + 3 * axis]
        along = (row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2]) / shape[3 + axis]
        slope = along / shape[3 + axis]
        inner, outer = inner + along * along, outer + slope * slope
        normal_z = normal_z + slope * row[2]
    inner, outer = xp.sqrt(inner + 1e-9), xp.sqrt(outer + 1e-12)
    return inner * (inner - 1) / outer, normal_z / outer


def cover_ellipsoid(points: Points, shape: jax.Array, grown: jax.Array | float = 0.0) -> jax.Array:
    """Share of each voxel inside an ellipsoid that is grown by some mm."""
    distance, normal_z = ellipsoid(points, shape)
    return cover(distance - grown, points.extent(normal_z))


def make_ellipsoid(centre, half_axes, rows=None) -> np.ndarray:
    """Packs an ellipsoid for `ellipsoid`; `rows` default to the patient's axes."""
    rows = np.eye(3) if rows is None else rows
    return np.concatenate([centre, half_axes, np.ravel(rows)]).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("tiles", "keep"))
def cover_capsules(
    points: Points, ends: jax.Array, radii: jax.Array, *, tiles: int, keep: int
) -> jax.Array:
    """Largest cover of any capsule, equation (2).

    The image plane is cut into tiles x tiles; of each tile only the `keep` nearest capsules are
    looked at, which makes hundreds of vessels cheap.

    Args:
      points: the grid.
      ends: [n, 6] both ends (x, y, z) in mm.
      radii: [n, m] mm; a capsule may have several radii (lumen, wall), not positive is absent.
      tiles: divides height and width.
      keep: capsules per tile.

    Returns:
      [m, depth, height, width] cover in [0, 1].
    """
    split = functools.partial(
        rearrange, pattern="d (ty h) (tx w) -> d ty h tx w", ty=tiles, tx=tiles
    )
    x, y, z = (split(axis) for axis in (points.x, points.y, points.z))
    centre = [axis.mean((2, 4)).reshape(-1, 1) for axis in (x, y, z)]
    distance, _ = _axis_distance(*centre, *ends.T)  # [tiles in the volume, n]
    largest = radii.max(1)
    distance = jnp.where(largest > 0, distance - largest, jnp.inf)
    nearest = jax.lax.top_k(-distance, min(keep, ends.shape[0]))[1]
    table = jnp.concatenate([ends, radii], axis=1)[nearest]
    table = rearrange(table, "(d ty tx) k c -> k c d ty 1 tx 1", d=x.shape[0], ty=tiles, tx=tiles)

    def add(best, capsule):
        axis, normal_z = _axis_distance(x, y, z, *capsule[:6])
        extent = points.extent(normal_z)
        radius = jnp.maximum(capsule[6:], 0.0)
        share = jnp.clip(0.5 + (radius - axis) / extent, 0.0, jnp.minimum(1.0, 2 * radius / extent))
        return jnp.maximum(best, share), None

    empty = jnp.zeros((radii.shape[1], *x.shape), jnp.float32)
    best, _ = jax.lax.scan(add, empty, table)
    return rearrange(best, "m d ty h tx w -> m d (ty h) (tx w)")


def _axis_distance(x, y, z, x0, y0, z0, x1, y1, z1):
    """Distance to a line segment and the z component of the direction from it."""
    ux, uy, uz = x1 - x0, y1 - y0, z1 - z0
    dx, dy, dz = x - x0, y - y0, z - z0
    length2 = ux * ux + uy * uy + uz * uz + 1e-6
    t = jnp.clip((dx * ux + dy * uy + dz * uz) / length2, 0.0, 1.0)
    dx, dy, dz = dx - t * ux, dy - t * uy, dz - t * uz
    distance = jnp.sqrt(dx * dx + dy * dy + dz * dz + 1e-6)
    return distance, dz / distance
