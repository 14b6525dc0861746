import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from gct_jax.volumes.intensity import AIR_HU
from gct_jax.volumes.resample import resample

RNG = np.random.default_rng(0)


def test_same_grid_changes_nothing():
    volume = RNG.normal(0, 300, (5, 6, 7)).astype(np.float32)
    result = resample(volume, (2.0, 0.7, 0.7), volume.shape, (2.0, 0.7, 0.7))
    np.testing.assert_allclose(result, volume, atol=1e-3)


def test_refining_is_linear_interpolation():
    """Against scipy at the physical positions of the new voxels."""
    volume = RNG.normal(0, 300, (5, 6, 7)).astype(np.float32)
    spacing, new_shape, new_spacing = (2.0, 1.0, 1.5), (7, 9, 8), (1.0, 0.6, 0.9)
    axes = [
        ((np.arange(m) - (m - 1) / 2) * t / s + (n - 1) / 2
         for m, t, s, n in zip(new_shape, new_spacing, spacing, volume.shape, strict=True))
    ]  # fmt: skip
    positions = np.meshgrid(*axes[0], indexing="ij")
    expected = map_coordinates(volume, positions, order=1, mode="nearest")
    result = resample(volume, spacing, new_shape, new_spacing)
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_larger_field_is_padded_with_air():
    volume = np.full((2, 4, 4), 40.0, np.float32)
    result = np.array(resample(volume, (3.0, 1.0, 1.0), (4, 8, 6), (3.0, 1.0, 1.0)))
    np.testing.assert_allclose(result[1:3, 2:6, 1:5], 40.0, atol=1e-3)
    result[1:3, 2:6, 1:5] = AIR_HU
    np.testing.assert_allclose(result, AIR_HU, atol=1e-3)


def test_smaller_field_is_cropped():
    volume = RNG.normal(0, 300, (6, 6, 6)).astype(np.float32)
    result = resample(volume, (1.0, 1.0, 1.0), (4, 2, 6), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(result, volume[1:5, 2:4], atol=1e-3)


def test_coarsening_averages():
    """A pattern finer than the new grid becomes its mean, whichever phase is sampled."""
    stripes = np.tile(np.array([-1000.0, 0.0], np.float32), (4, 4, 32))
    result = np.asarray(resample(stripes, (1.0, 1.0, 1.0), (4, 4, 8), (1.0, 1.0, 8.0)))
    np.testing.assert_allclose(result, -500.0, atol=20.0)


@settings(max_examples=15, deadline=None)
@given(spacing=st.floats(1.0, 3.0), new_spacing=st.floats(0.5, 3.0))
def test_a_ramp_stays_where_it_is(spacing, new_spacing):
    """HU = millimetres from the centre, in every grid; a tenth of a voxel off where it averages."""
    position_mm = (np.arange(24) - 11.5) * spacing
    volume = np.broadcast_to(position_mm.astype(np.float32), (2, 2, 24))
    result = resample(volume, (1, 1, spacing), (2, 2, 4), (1, 1, new_spacing))
    expected = (np.arange(4) - 1.5) * new_spacing
    allowed = 0.1 * new_spacing if new_spacing > spacing else 2e-3
    np.testing.assert_allclose(result[0, 0], expected, atol=allowed)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_result_is_float32(dtype):
    assert resample(np.zeros((2, 2, 2), dtype), (1, 1, 1), (2, 2, 2), (1, 1, 1)).dtype == np.float32
