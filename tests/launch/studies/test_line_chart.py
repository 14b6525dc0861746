"""Ticks and positions of the line charts."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from launch.studies.line_chart import Panel, _even_ticks, _log_ticks, save_line_charts


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5))
def test_even_ticks_hold_all_values_at_equal_distances(values):
    values = [round(value, 3) for value in values]
    ticks = _even_ticks(values)
    assert ticks[0] <= min(values) and max(values) <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=5))
@example([10000.0, 9999.999999999998])
def test_log_ticks_hold_all_values(values):
    ticks = _log_ticks(values)
    assert ticks[0] <= min(values) and max(values) <= ticks[-1]
    assert ticks[0] < ticks[-1]
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize("log_y", [False, True])
def test_a_falling_line_falls(tmp_path, log_y):
    panel = Panel("t", "x", {"a": [(1, 100.0), (10, 10.0), (100, 1.0)]}, {"half": 50.0}, log_y)
    save_line_charts(tmp_path / "c.png", [panel, panel])
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    half = pixels.shape[1] // 2
    np.testing.assert_array_equal(pixels[:, :half], pixels[:, half:])
    blue = np.argwhere((pixels[40:350, :400] == [0x1F, 0x5F, 0xA8]).all(-1))
    rows = [blue[blue[:, 1] == column, 0].mean() for column in (90, 200, 350)]
    assert rows[0] < rows[1] < rows[2]
    share = (rows[1] - rows[0]) / (rows[2] - rows[0])
    assert (abs(share - 110 / 260) < 0.05) == log_y  # a straight line on two log axes
