"""The published preparation as a source, on the volumes of the golden case `prep`."""

import json
import shutil
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from data_pipelines.generatect import volumes
from data_pipelines.source import HELD_OUT, TRAINING, open_source
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

GOLDEN = Path(__file__).parents[2] / "golden" / "prep"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return shutil.copytree(GOLDEN, tmp_path_factory.mktemp("ct") / "prep")


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    path = tmp_path_factory.mktemp("reports") / "reports.xlsx"
    workbook = openpyxl.Workbook()
    rows = [("AccessionNo", "Impressions"), ("acc_a", 'A "small" nodule (left).')]
    rows += [(name, "Normal.") for name in ("acc_b", "acc_c", "acc_short")]
    for row in rows:
        workbook.active.append(row)
    workbook.save(path)
    return path


@pytest.fixture(scope="module")
def source(root, sheet):
    data = DataConfig(source="generatect", root=str(root), reports=str(sheet), held_out=1)
    return open_source(data)


def test_cases_are_the_volumes_that_the_published_datasets_keep(source):
    kept = json.loads(GOLDEN.with_suffix(".json").read_text())["kept_by_reference"]
    assert source.cases == len(kept) == 3 and not source.rendered
    patients = [source.patient(case) for case in range(3)]
    assert patients == ["patient1", "patient1", "patient2"]
    assert [source.split(case) for case in range(3)] == [TRAINING, TRAINING, HELD_OUT]
    assert source.labels(0) is None and source.counterfactual() is None


def test_volumes_and_reports_are_the_published_ones(source):
    path = GOLDEN / "patient1" / "acc_a" / "acc_a_1.nii.gz"
    expected = volumes.load_ctvit_volume(path, volumes.read_metadata(path), 9, 16)
    made = source.volume_hu(0, Grid.centred((9, 16, 16), (1.0, 1.0, 1.0)))
    assert made.dtype == np.int16
    np.testing.assert_allclose(made / 1000, expected, atol=5.01e-4)
    assert source.report(0, np.random.default_rng(0)).endswith(": A small nodule left.")
    with pytest.raises(ConfigError, match="square slices, not 16 x 8"):
        source.volume_hu(0, Grid.centred((9, 16, 8), (1.0, 1.0, 1.0)))


def test_a_patient_is_never_split(root, sheet):
    data = DataConfig(source="generatect", root=str(root), reports=str(sheet), held_out=2)
    source = open_source(data)
    assert {source.split(case) for case in range(3)} == {HELD_OUT}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, "data.root = 'nowhere' is no folder"),
        ({"root": ""}, "data.root = '' is no folder"),
        ({"reports": "none.xlsx"}, "cannot read data.reports = 'none.xlsx'"),
        ({"reports": ""}, "cannot read data.reports = ''"),
    ],
)
def test_what_is_missing_is_named(root, sheet, changes, message):
    data = {"root": str(root), "reports": str(sheet), **changes}
    with pytest.raises(ConfigError, match=message):
        open_source(DataConfig(source="generatect", **data))


def test_a_folder_without_usable_volumes_says_why(sheet, tmp_path):
    case = tmp_path / "patient" / "acc_x"
    case.mkdir(parents=True)
    (case / "acc_x_1.nii.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no usable volume.*acc_x is not in the sheet"):
        open_source(DataConfig(source="generatect", root=str(tmp_path), reports=str(sheet)))


def test_a_damaged_volume_is_passed_over(root, sheet, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "patient1" / "acc_b" / "acc_b_1.nii.gz").write_bytes(b"no image")
    data = DataConfig(source="generatect", root=str(copy), reports=str(sheet), held_out=1)
    assert open_source(data).cases == 2
