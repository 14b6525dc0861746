"""Analytic shapes on a voxel grid: signed distances in mm and the share of a voxel they cover.

A surface at signed distance s (negative inside) covers of a voxel of extent e along its normal

    c = clip(1/2 - s / e, 0, 1)                                                         (1)

and a capsule of radius r at axis distance a, which may be thinner than the voxel,

    c = clip(1/2 + (r - a) / e, 0, min(1, 2 r / e)).                                    (2)

Along the body axis e is the slice thickness, in plane the pixel spacing; between them
e = sqrt((n_xy pixel)^2 + (n_z thickness)^2) for the unit normal n.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.volumes.grid import Grid

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


class Window(NamedTuple):
    """A box of voxels of fixed size that is moved over a grid."""

    grid: Grid
    size: tuple[int, int, int]

    @classmethod
    def of(cls, grid: Grid, reach_mm: float) -> "Window":
        """The smallest window that holds everything within `reach_mm` of its middle."""
        depth, height, width = (
            min(count, int(np.ceil(2 * reach_mm / spacing)) + 2)
            for count, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
        )
        return cls(grid, (depth, height, width))

    def starts(self, middle: jax.Array) -> jax.Array:
        """First voxels (z, y, x) of windows around points [n, 3] (x, y, z), inside the grid."""
        spacing, shape = np.array(self.grid.spacing_mm), np.array(self.grid.shape)
        index = middle[:, ::-1] / spacing + (shape - 1) / 2 - (np.array(self.size) - 1) / 2
        return jnp.clip(jnp.round(index).astype(jnp.int32), 0, shape - np.array(self.size))

    def axes_mm(self, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z, y, x of the window's voxels, broadcastable against each other."""
        z, y, x = (
            axis[0] + (start[i] + jnp.arange(self.size[i])) * self.grid.spacing_mm[i]
            for i, axis in enumerate(self.grid.axes_mm())
        )
        return z[:, None, None], y[:, None], x

    def take(self, volume: jax.Array, start: jax.Array) -> jax.Array:
        """The window of a volume [m, depth, height, width]."""
        return jax.lax.dynamic_slice(volume, (0, *start), (volume.shape[0], *self.size))

    def put(self, volume: jax.Array, values: jax.Array, start: jax.Array) -> jax.Array:
        """The volume with the window replaced."""
        return jax.lax.dynamic_update_slice(volume, values, (0, *start))


def cover(distance: jax.Array, extent: jax.Array | float) -> jax.Array:
    """Share of a voxel inside a surface, equation (1)."""
    return jnp.clip(0.5 - distance / extent, 0.0, 1.0)


def cover_sheet(distance: jax.Array, half: jax.Array | float, extent) -> jax.Array:
    """Share of a voxel inside a sheet or rod of this half thickness, equation (2)."""
    return jnp.clip(0.5 + (half - distance) / extent, 0.0, jnp.minimum(1.0, 2 * half / extent))


def blend(background: jax.Array | float, value: jax.Array | float, share: jax.Array) -> jax.Array:
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


def cover_capsules(grid: Grid, ends: jax.Array, radii: jax.Array, reach_mm: float) -> jax.Array:
    """Largest cover of any capsule, equation (2).

    Each capsule is drawn in a window of fixed size around its middle, so hundreds of vessels cost
    little more than one pass over the volume.

    Args:
      grid: the voxels.
      ends: [n, 6] both ends (x, y, z), mm from the isocentre.
      radii: [n, m] mm; a capsule may have several radii (lumen, wall); not positive is absent.
      reach_mm: at least half of the longest capsule plus its radius and a voxel.

    Returns:
      [m, depth, height, width] cover in [0, 1].
    """
    window = Window.of(grid, reach_mm)
    starts = window.starts((ends[:, :3] + ends[:, 3:]) / 2)

    def add(best, capsule):
        end, radius, start = capsule
        z, y, x = window.axes_mm(start)
        axis, normal_z = _axis_distance(x, y, z, end)
        extent = Points(x, y, z, grid.spacing_mm[2]).extent(normal_z)
        radius = jnp.maximum(radius, 0.0)[:, None, None, None]
        share = jnp.clip(0.5 + (radius - axis) / extent, 0.0, jnp.minimum(1.0, 2 * radius / extent))
        old = window.take(best, start)
        return window.put(best, jnp.maximum(old, share), start), None

    empty = jnp.zeros((radii.shape[1], *grid.shape), jnp.float32)
    return jax.lax.scan(add, empty, (ends, radii, starts))[0]


def _axis_distance(x, y, z, ends):
    """Distance to a line segment and the z component of the direction from it."""
    ux, uy, uz = ends[3] - ends[0], ends[4] - ends[1], ends[5] - ends[2]
    dx, dy, dz = x - ends[0], y - ends[1], z - ends[2]
    length2 = ux * ux + uy * uy + uz * uz + 1e-6
    t = jnp.clip((dx * ux + dy * uy + dz * uz) / length2, 0.0, 1.0)
    dx, dy, dz = dx - t * ux, dy - t * uy, dz - t * uz
    distance = jnp.sqrt(dx * dx + dy * dy + dz * dz + 1e-6)
    return distance, dz / distance
