"""A CT on a model's grid and back: the field about the body, the inverse, the record."""

import json

import numpy as np
import pytest
from chest_ct import SPACING_MM, chest
from hypothesis import given, settings
from hypothesis import strategies as st

from gct_jax.errors import InputError
from gct_jax.volumes.body import find_body
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import Grid, centre_offset_mm
from gct_jax.volumes.placement import Placement, on_grid, place

FIELD = ((30, 48, 48), (8.0, 8.0, 8.0))


def ct(shift_mm=(0.0, 0.0, 0.0), **options):
    return CT.from_array(chest(shift_mm=shift_mm, **options), options.get("spacing_mm", SPACING_MM))


def test_the_body_and_its_lungs_are_found():
    body = find_body(chest(shift_mm=(16, 12, -18)), SPACING_MM)
    for (low, high), (expected_low, expected_high) in zip(
        body.box[1:], ((-108, 132), (-178, 142)), strict=True
    ):
        assert abs(low - expected_low) <= 8 and abs(high - expected_high) <= 8
    assert abs(sum(body.lungs) / 2 - 16) <= 8
    litres = 4 / 3 * np.pi * 80 * 110 * (55 + 45) / 1e6
    assert body.lung_litres == pytest.approx(litres, rel=0.05)


@settings(max_examples=12, deadline=None)
@given(y=st.floats(-25, 25), x=st.floats(-18, 18), z=st.floats(-30, 30))
def test_the_field_follows_the_body(z, y, x):
    """Wherever the patient lies in the scanner, the network sees about the same."""
    shifted = ct((z, y, x))
    seen = on_grid(shifted, place(shifted, *FIELD).grid)
    middle = on_grid(ct(), place(ct(), *FIELD).grid)
    assert np.mean(np.abs(seen.astype(int) - middle) > 300) < 0.06


def test_a_table_and_padding_do_not_move_the_field():
    plain, volume = ct(), chest()
    volume[:, -3] = 300  # a table below the patient
    volume[:, :, :4] = -8192
    with_table = CT.from_array(volume, SPACING_MM)
    fields = [place(one, *FIELD).grid.affine for one in (plain, with_table)]
    np.testing.assert_allclose(*fields, atol=6)


def test_back_on_the_own_grid():
    own = ct((8, 6, -12))
    placement = place(own, (40, 64, 64), (8.0, 6.0, 6.0))
    again = placement.back(on_grid(own, placement.grid))
    np.testing.assert_allclose(again.affine, own.affine, atol=1e-9)
    assert again.volume_hu.shape == own.volume_hu.shape
    inside = np.s_[4:-4, 8:-8, 8:-8]
    assert np.abs(again.volume_hu[inside] - own.volume_hu[inside]).mean() < 25


def test_the_record_is_whole():
    placement = place(ct(), *FIELD)
    read = Placement.from_json(json.loads(json.dumps(placement.to_json())))
    assert (read.source, read.grid, read.notes) == (
        placement.source,
        placement.grid,
        placement.notes,
    )


def test_the_grid_keeps_the_axes_and_says_where_it_lies():
    own = ct((0, 12, 0))
    grid = place(own, *FIELD).grid
    assert grid.shape == FIELD[0] and grid.spacing_mm == pytest.approx(FIELD[1])
    assert centre_offset_mm(own.grid, grid)[1] == pytest.approx(12, abs=6)
    with pytest.raises(InputError, match="other directions"):
        centre_offset_mm(own.grid, Grid(grid.shape, grid.affine[[1, 0, 2, 3]]))


def test_depths():
    own = ct()  # 320 mm
    shapes = [place(own, (50, 48, 48), (8.0, 8.0, 8.0), of).grid.shape[0]
              for of in ((30, 42, 50), (30, 38), ())]  # fmt: skip
    assert shapes == [42, 38, 50]


def test_notes_say_what_was_cut_and_padded():
    assert "cut from 320 to 160 mm" in " ".join(place(ct(), (20, 48, 48), (8.0,) * 3).notes)
    assert "padded with air to 480 mm" in " ".join(place(ct(), (60, 48, 48), (8.0,) * 3).notes)
    narrow = " ".join(place(ct(), (40, 48, 20), (8.0,) * 3).notes)
    assert "width of 3" in narrow and "cut to 160 mm" in narrow


@pytest.mark.parametrize("value", [40.0, -1000.0])
def test_no_chest_is_refused(value):
    volume = chest()
    volume[volume < -500] = value if value > 0 else volume[volume < -500]
    volume[(volume > -900) & (volume < -500)] = 40
    with pytest.raises(InputError, match="no chest"):
        place(CT.from_array(volume, SPACING_MM), *FIELD)


def test_slices_alone_are_those_of_the_whole():
    own = ct()
    grid = place(own, *FIELD).grid
    np.testing.assert_array_equal(on_grid(own, grid)[[3, 17]], on_grid(own, grid, [3, 17]))
