import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gct_jax.volumes.intensity import (
    WINDOWS_HU,
    from_superres,
    from_unit,
    to_superres,
    to_unit,
    window_to_uint8,
)

HU = np.array([-3024, -1000, -500, 0, 40, 1000, 3000], np.int16)


def test_unit_values_and_back():
    unit = to_unit(HU)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [-1, -1, -0.5, 0, 0.04, 1, 1], atol=1e-7)
    np.testing.assert_allclose(from_unit(unit), np.clip(HU, -1000, 1000), atol=1e-4)
    np.testing.assert_array_equal(from_unit(np.array([-1.5, 2.0])), [-1000, 1000])


def test_superres_values_and_back():
    superres = to_superres(HU)
    np.testing.assert_allclose(superres, [0, 0, 0.25, 0.5, 0.52, 1, 1], atol=1e-7)
    np.testing.assert_allclose(from_superres(superres), np.clip(HU, -1000, 1000), atol=1e-3)


def test_windows():
    assert WINDOWS_HU == {
        "raw": (-1000, 1000),
        "lung": (-1000, 150),
        "mediastinal": (-125, 225),
    }
    grey = window_to_uint8(np.array([-2000.0, -125.0, 50.0, 225.0, 900.0]), (-125.0, 225.0))
    assert grey.dtype == np.uint8
    assert grey.tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("function", [to_unit, from_unit, to_superres, from_superres])
def test_jax_arrays_stay_on_the_device(function):
    values = np.linspace(-1500, 1500, 7, dtype=np.float32)
    result = jax.jit(function)(jnp.asarray(values))
    assert isinstance(result, jax.Array)
    np.testing.assert_allclose(result, function(values), atol=1e-4)
