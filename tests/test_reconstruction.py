"""The grid on which a CT is encoded, and ids that cannot be decoded."""

import numpy as np
import pytest
from chest_ct import chest
from tiny_model import save_tiny_model, tiny_config

import gct_jax
from gct_jax.errors import InputError
from gct_jax.reconstruction import covering_grid, encoding_grid
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import Grid, centre_offset_mm, grid_centre
from gct_jax.volumes.placement import on_grid, place


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


def thorax(shift=(0, 0)):
    """45 mm of a chest, moved by so many voxels in the plane."""
    volume = chest((5, 64, 80), (9.0, 6.0, 6.0))
    return CT.from_array(np.roll(volume, shift, (1, 2)), (9.0, 6.0, 6.0))


def test_ids_do_not_depend_on_where_the_patient_lies(model):
    notes = []
    middle, moved = thorax(), thorax((-4, 7))
    np.testing.assert_array_equal(*(gct_jax.encode(model, ct, on_note=notes.append)
                                    for ct in (middle, moved)))  # fmt: skip
    assert any("width of" in note and "was cut to 80 mm" in note for note in notes)
    grid = encoding_grid(model.config, moved, on_note=notes.append)
    offset = np.subtract(
        centre_offset_mm(moved.grid, grid),
        centre_offset_mm(middle.grid, encoding_grid(model.config, middle, on_note=notes.append)),
    )
    np.testing.assert_allclose(offset, (0, -24, 42), atol=1e-6)
    whole = [encoding_grid(model.config, ct, "whole") for ct in (middle, moved)]
    assert whole[0] == whole[1] == covering_grid(model.config, middle.grid)
    assert np.any(gct_jax.encode(model, moved, whole[0]) != gct_jax.encode(model, middle, whole[0]))


def test_ids_are_those_of_the_volume_as_it_is_prepared(model):
    ct, own = thorax((3, -2)), tiny_config().volume
    prepared = place(ct, (5, 16, 16), (own.slice_spacing_mm, *[own.pixel_spacing_mm] * 2))
    ready = CT(on_grid(ct, prepared.grid).astype(np.float32), prepared.grid.affine)
    again = gct_jax.encode(model, ready)  # it has the model's grid already
    np.testing.assert_array_equal(gct_jax.encode(model, ct, on_note=lambda _: None), again)
    assert encoding_grid(model.config, ready) == ready.grid


def test_a_ct_without_a_chest_is_read_whole_and_told():
    ct, notes = CT.from_array(np.full((5, 40, 40), 40.0), (9.0, 4.0, 4.0)), []
    assert encoding_grid(tiny_config(), ct, on_note=notes.append) == covering_grid(
        tiny_config(), ct.grid
    )
    assert len(notes) == 1 and "no chest" in notes[0] and "all of it" in notes[0]
    with pytest.raises(InputError, match="body or whole"):
        encoding_grid(tiny_config(), ct, "lungs")


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
