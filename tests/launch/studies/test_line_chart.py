"""Line charts: the file, and where lines lie."""

import numpy as np
import pytest
from PIL import Image

from launch.studies.line_chart import Panel, save_line_charts


@pytest.mark.parametrize("log_y", [False, True])
def test_a_falling_line_falls(tmp_path, log_y):
    panel = Panel("t", "x", {"a": [(1, 100.0), (10, 10.0), (100, 1.0)]}, {"half": 50.0}, log_y)
    save_line_charts(tmp_path / "c.png", [panel])
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = np.argwhere((pixels == [0x1F, 0x77, 0xB4]).all(-1))  # the first colour of the cycle
    columns = blue[:, 1]
    left, right = columns.min() + 4, columns.max() - 4
    at = [left, (left + right) // 2, right]
    rows = [blue[np.abs(columns - column) <= 1, 0].mean() for column in at]
    assert rows[0] < rows[1] < rows[2]
    share = (rows[1] - rows[0]) / (rows[2] - rows[0])
    assert (abs(share - 0.5) < 0.1) == log_y  # a straight line on two log axes


def test_panels_stand_side_by_side(tmp_path):
    panel = Panel("t", "x", {"a": [(1, 1.0), (2, 2.0)]}, {})
    for count in (1, 3):
        save_line_charts(tmp_path / f"{count}.png", [panel] * count)
    sizes = []
    for count in (1, 3):
        with Image.open(tmp_path / f"{count}.png") as picture:
            sizes.append(picture.size)
    assert sizes[1] == (3 * sizes[0][0], sizes[0][1])
