"""The phantom as a source: volumes, reports and labels of the same patient."""

import numpy as np
import pytest

from data_pipelines.phantom.case import counterfactual_description, sample_case
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.render import render
from data_pipelines.phantom.report_parser import parse_report
from data_pipelines.source import HELD_OUT, TRAINING, open_source
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

DATA = DataConfig(cases=12, held_out=3)


@pytest.fixture(scope="module")
def source():
    return open_source(DATA)


def test_volume_is_the_rendering_of_the_case(source):
    grid = Grid.centred((5, 16, 16), (40.0, 25.0, 25.0))
    found = np.asarray(source.volume_hu(4, grid))
    expected = render(sample_case(4).anatomy, grid)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.round(expected))
    for affine in (np.diag([1.0, 1, 1, 1]), grid.affine + np.diag([0.0, 0, 0, 0])[:, ::-1] + 5):
        with pytest.raises(ConfigError, match="centred grids"):
            source.volume_hu(4, Grid(grid.shape, affine))


def test_report_and_labels_say_the_same(source):
    for of in (source, source.counterfactual()):
        for case in range(12):
            said = parse_report(of.report(case, np.random.default_rng(case)))
            names = {finding.name for finding in said.findings}
            assert names == {FINDINGS[i] for i in np.flatnonzero(of.labels(case))}
            assert of.labels(case).dtype == np.int8


def test_attributes_are_those_of_the_wording(source):
    text = source.report(3, np.random.default_rng(0))
    states = source.attributes(3, text)[: 3 * len(FINDINGS) : 3]
    np.testing.assert_array_equal(states > 0, source.labels(3).astype(bool))


def test_splits_and_patients(source):
    assert [source.split(case) for case in (0, 8, 9, 11)] == [TRAINING] * 2 + [HELD_OUT] * 2
    assert source.patient(3) == source.counterfactual().patient(3) != source.patient(4)
    names = {finding.name for finding in counterfactual_description(5).findings}
    other = source.counterfactual().labels(5)
    assert names == {FINDINGS[i] for i in np.flatnonzero(other)}
