"""What a source hands over is refused by name where it is wrong."""

import types

import numpy as np
import pytest

from data_pipelines.checks import checked_report, checked_volume, split_cases
from data_pipelines.source import HELD_OUT, TRAINING, open_source
from gct_jax.errors import ConfigError, InputError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

GRID = Grid.centred((2, 3, 4), (1.0, 1.0, 1.0))
GOOD = np.linspace(-1000, 1000, 24).reshape(2, 3, 4).astype(np.int16)


def source(**methods):
    return types.SimpleNamespace(**methods)


def raising(error):
    def call(*_):
        raise error

    return call


def test_a_good_volume_passes_as_it_is():
    assert checked_volume(source(volume_hu=lambda *_: GOOD), "mine", 3, GRID) is GOOD


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (GOOD[:, :2], r"of shape 2 x 2 x 4, the grid is 2 x 3 x 4"),
        (None, "volume_hu is no array"),
        (GOOD.astype(np.float32), "volume_hu is float32; give int16 in HU"),
        (np.full_like(GOOD, -1000), "is -1000 everywhere"),
        (np.sign(GOOD), "goes from -1 to 1, which are no HU"),
        (GOOD * 30, "which are no HU"),
    ],
)
def test_a_wrong_volume_is_named_with_its_case(volume, message):
    with pytest.raises(ConfigError, match=f"data.source mine, case 3: .*{message}"):
        checked_volume(source(volume_hu=lambda *_: volume), "mine", 3, GRID)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("case_3.nii.gz"), KeyError("row"), ValueError("bad header")]
)
def test_a_case_that_cannot_be_read_is_named(error):
    with pytest.raises(ConfigError, match=f"data.source mine, case 3: {type(error).__name__}: "):
        checked_volume(source(volume_hu=raising(error)), "mine", 3, GRID)
    with pytest.raises(InputError, match=r"^as it is$"):
        checked_volume(source(volume_hu=raising(InputError("as it is"))), "mine", 3, GRID)


@pytest.mark.parametrize("report", ["", "  ", None, 3])
def test_a_report_is_a_text(report):
    with pytest.raises(ConfigError, match="case 1: the report is"):
        checked_report(source(report=lambda *_: report), "mine", 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("splits", "patients", "message"),
    [
        ([TRAINING, "validation"], "ab", "case 1: split is 'validation'"),
        ([TRAINING, HELD_OUT], "aa", "patient 'a' has cases in both splits"),
        ([HELD_OUT, HELD_OUT], "ab", "has no training cases"),
    ],
)
def test_splits_are_known_and_by_patient(splits, patients, message):
    made = source(cases=2, split=splits.__getitem__, patient=patients.__getitem__)
    with pytest.raises(ConfigError, match=message):
        split_cases(made, "mine")


class WithoutVolumes:
    rendered, cases = False, 1

    def __init__(self, data):
        pass


class WithoutConfig(WithoutVolumes):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WithoutVolumes", "has no volume_hu, report, labels, attributes, patient, split, counter"),
        ("WithoutConfig", "cannot be built with the DataConfig alone"),
    ],
)
def test_a_class_that_is_no_source_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        open_source(DataConfig(source=f"{__name__}:{name}"))
