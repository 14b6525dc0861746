"""Measurements of rendered chests and of volumes in which the answer is known."""

import functools

import numpy as np
import pytest

from data_pipelines.phantom.case import case_from_findings
from data_pipelines.phantom.chest_measurements import (
    ABOVE_HU,
    PERCENTILES,
    Measurements,
    measure,
)
from data_pipelines.phantom.chest_regions import read_chest
from data_pipelines.phantom.findings import Finding
from data_pipelines.phantom.render import render
from gct_jax.volumes.grid import Grid

SPACING_MM = (9.0, 5.625, 5.625)
GRID = Grid.centred((33, 64, 64), (SPACING_MM[0], SPACING_MM[1], SPACING_MM[1]))


@functools.cache
def rendered(*findings):
    return np.asarray(render(case_from_findings(301, 58, "male", findings).anatomy, GRID))


def measured(volume):
    return measure(read_chest(volume, SPACING_MM))


def empty():
    return np.full((33, 64, 64), -1000, np.int16)


@pytest.mark.parametrize("volume", [rendered, empty])
def test_every_volume_has_the_same_finite_measurements(volume):
    found = measured(volume())
    assert found.right.shape == found.left.shape
    assert [part.dtype for part in found] == [np.float32] * 3
    assert all(np.isfinite(part).all() for part in found)
    assert [part.shape for part in found] == [part.shape for part in measured(rendered())]


def test_first_statistics_of_the_midline_are_those_of_the_whole_volume():
    volume = rendered()
    hu = np.clip(volume, -1000, 1000).astype(np.float32)
    found = measured(volume).midline[1:]  # the heart's ratio comes first
    n = len(PERCENTILES)
    np.testing.assert_allclose(found[:n], np.percentile(hu, PERCENTILES), rtol=1e-5)
    np.testing.assert_allclose(found[n : n + 2], [hu.mean(), hu.std()], rtol=1e-4)
    shares = [np.mean(hu > limit) for limit in ABOVE_HU]
    np.testing.assert_allclose(found[n + 2 : n + 2 + len(shares)], shares, atol=1e-6)
    brightest = np.sort(hu.ravel())[-4:].mean()
    np.testing.assert_allclose(found[n + 2 + len(shares)], brightest, rtol=1e-6)


def test_fluid_on_the_left_changes_the_left_more_than_the_right():
    fluid = Finding("Pleural effusion", "left", None, "large", 0.9, 90)
    before, after = measured(rendered()), measured(rendered(fluid))
    change = Measurements(
        *(np.abs(b - a) / (np.abs(b) + 1) for b, a in zip(before, after, strict=True))
    )
    assert np.median(change.left) > 10 * np.median(change.right)
