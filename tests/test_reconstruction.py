"""The grid on which a CT is encoded, and ids that cannot be decoded."""

import numpy as np
import pytest
from tiny_model import save_tiny_model, tiny_config

import gct_jax
from gct_jax.errors import InputError
from gct_jax.reconstruction import covering_grid
from gct_jax.volumes.grid import Grid, grid_centre


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return gct_jax.load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize(
    ("shape", "spacing", "expected_shape", "expected_spacing"),
    [
        ((5, 16, 16), (9.0, 5.0, 5.0), (5, 16, 16), (9.0, 5.0, 5.0)),  # the model's own grid
        ((45, 80, 80), (1.0, 1.0, 1.0), (5, 16, 16), (9.0, 5.0, 5.0)),
        ((46, 80, 80), (1.0, 1.0, 1.0), (7, 16, 16), (9.0, 5.0, 5.0)),  # 6 slices do not tile
        ((2, 10, 10), (1.0, 1.0, 1.0), (1, 16, 16), (9.0, 5.0, 5.0)),  # small: air around it
        ((45, 80, 160), (1.0, 1.0, 1.0), (5, 16, 16), (9.0, 10.0, 10.0)),  # wide: larger pixels
        ((45, 96, 80), (1.0, 1.0, 1.0), (5, 16, 16), (9.0, 6.0, 6.0)),
    ],
)
def test_covering_grid(shape, spacing, expected_shape, expected_spacing):
    own = Grid.centred(shape, spacing)
    grid = covering_grid(tiny_config(), own)
    assert (grid.shape, grid.spacing_mm) == (expected_shape, pytest.approx(expected_spacing))
    assert all(np.multiply(grid.shape, grid.spacing_mm) >= np.multiply(shape, spacing) - 1e-6)
    np.testing.assert_allclose(grid_centre(grid.affine, grid.shape), np.zeros(3), atol=1e-9)


@pytest.mark.parametrize(
    ("words", "ids", "grid"),
    [
        ("whole numbers", np.zeros((3, 2, 2)), None),
        ("whole numbers", np.zeros((2, 2), int), None),
        ("0 to 31", np.full((3, 2, 2), 32), None),
        ("0 to 31", np.full((3, 2, 2), -1), None),
        ("3 x 2 x 2 ids", np.zeros((3, 2, 2), int), Grid.centred((7, 16, 16), (9, 5, 5))),
    ],
)
def test_ids_that_mean_nothing_are_refused(model, words, ids, grid):
    with pytest.raises(InputError, match=words):
        gct_jax.decode(model, ids, grid)
