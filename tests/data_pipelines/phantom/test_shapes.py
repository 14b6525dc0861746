"""Analytic shapes and fields against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.phantom.case import sample_case
from data_pipelines.phantom.frame import patient_points, to_scanner
from data_pipelines.phantom.shapes import (
    SLICE_THICKNESS_MM,
    Points,
    cover_capsules,
    ellipsoid,
    make_ellipsoid,
    superellipse,
)
from data_pipelines.phantom.texture import FIELDS, WAVES, evaluate_waves, sample_waves
from gct_jax.volumes.grid import Grid

CUBE = Grid.centred((12, 24, 24), (SLICE_THICKNESS_MM, SLICE_THICKNESS_MM, SLICE_THICKNESS_MM))


def test_superellipse_is_an_ellipse_at_roundness_two():
    angle = np.linspace(0, 2 * np.pi, 50)
    for scale in (0.5, 1.0, 1.7):
        x, y = 30 * scale * np.cos(angle), 20 * scale * np.sin(angle)
        expected = np.hypot(x, y) * (1 - 1 / scale)
        np.testing.assert_allclose(superellipse(x, y, 30, 20, 2.0), expected, atol=1e-4)


def test_a_sphere_has_exact_distances_and_normals():
    rng = np.random.default_rng(0)
    place = rng.normal(0, 40, (100, 3))
    rows = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sphere = make_ellipsoid((3.0, -2.0, 5.0), (20.0,) * 3, rows)
    distance, normal_z = ellipsoid(Points(*place.T, 1.0), sphere)
    radius = np.linalg.norm(place - (3, -2, 5), axis=1)
    np.testing.assert_allclose(distance, radius - 20, atol=1e-4)
    np.testing.assert_allclose(normal_z, (place[:, 2] - 5) / radius, atol=1e-4)


def test_capsules_have_the_volume_of_a_cylinder_with_round_ends():
    ends = np.array([[-8.0, 3, -4, 12, 6, 9], [-40, -40, -20, -40, -40, -20]], np.float32)
    radii = np.array([[9.0, 6.0], [0.0, 0.0]], np.float32)
    cover = np.asarray(cover_capsules(CUBE, ends, radii, 26.0))
    length = np.linalg.norm(ends[0, 3:] - ends[0, :3])
    # The edge is a linear ramp, one voxel wide: an average over radii r - h ... r + h.
    r, h = radii[0], SLICE_THICKNESS_MM / 2
    expected = np.pi * (length * (r**2 + h**2 / 3) + 4 / 3 * (r**3 + r * h**2))
    np.testing.assert_allclose(cover.sum((1, 2, 3)) * 5.0**3, expected, rtol=0.01)
    z, y, x = np.meshgrid(*CUBE.axes_mm(), indexing="ij")
    centre = (cover[0] * np.stack([x, y, z])).sum((1, 2, 3)) / cover[0].sum()
    np.testing.assert_allclose(centre, (ends[0, :3] + ends[0, 3:]) / 2, atol=0.3)


def test_a_thin_capsule_covers_only_a_share_of_its_voxels():
    ends = np.array([[-20.0, 2.5, 2.5, 20, 2.5, 2.5]], np.float32)
    cover = np.asarray(cover_capsules(CUBE, ends, np.array([[1.0]], np.float32), 26.0))
    np.testing.assert_allclose(cover.max(), 2 * 1.0 / SLICE_THICKNESS_MM, atol=1e-4)


def test_windows_change_nothing():
    rng = np.random.default_rng(1)
    first = rng.uniform(-50, 50, (30, 3))
    ends = np.concatenate([first, first + rng.uniform(-8, 8, (30, 3))], 1).astype(np.float32)
    radii = rng.uniform(1, 8, (30, 1)).astype(np.float32)
    small = cover_capsules(CUBE, ends, radii, 16.0)
    whole = cover_capsules(CUBE, ends, radii, 500.0)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(whole))


def test_pose_and_its_inverse_agree():
    anatomy = sample_case(2).anatomy
    grid = Grid.centred((8, 16, 16), (30.0, 20.0, 20.0))

    @jax.jit
    def there_and_back(anatomy):
        place = jnp.stack([axis.ravel() for axis in patient_points(anatomy, grid)[:3]], 1)
        return place, to_scanner(anatomy, jnp.concatenate([place, place], 1))[:, :3]

    place, back = there_and_back(anatomy)
    z, y, x = np.meshgrid(*grid.axes_mm(), indexing="ij")
    error = np.asarray(back) - np.stack([x.ravel(), y.ravel(), z.ravel()], 1)
    assert np.abs(error).max() < 1.0  # a fifth of a coarse pixel
    assert np.abs(np.asarray(place)[:, 0] - x.ravel()).max() > 1.0  # the pose is not trivial


def test_waves_are_sums_of_cosines_with_unit_variance():
    waves = sample_waves(np.random.default_rng(0))
    grid = Grid.centred((10, 20, 20), (25.0, 20.0, 20.0))
    fields = jax.jit(lambda w: evaluate_waves(w, grid.axes_mm()))(waves.astype(np.float32))
    z, y, x = np.meshgrid(*grid.axes_mm(), indexing="ij")
    for wave, name in zip(waves, FIELDS, strict=True):
        angle = sum(k * axis[..., None] for k, axis in zip(wave.T[:3], (z, y, x), strict=True))
        expected = np.sqrt(2 / WAVES) * np.cos(angle + wave[:, 3]).sum(-1)
        np.testing.assert_allclose(np.asarray(fields[name]), expected, atol=2e-3)
        assert 0.7 < np.std(np.asarray(fields[name])) < 1.3
