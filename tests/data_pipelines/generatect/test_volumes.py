"""Every array of the golden case `prep`, and the faults that were left behind."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.generatect import volumes as prep

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = 5e-5
SHOWN_SLICES = [0, 1, 50, 100, 150, 199, 200]
PATHS = {
    name: GOLDEN / "prep" / patient / name / f"{name}_1.nii.gz"
    for name, patient in (
        ("acc_a", "patient1"),
        ("acc_b", "patient1"),
        ("acc_c", "patient2"),
        ("acc_short", "patient2"),
    )
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "prep.npz") as arrays:
        return {name.removeprefix("out__"): arrays[name] for name in arrays}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["acc_a", "acc_b", "acc_c"])
def test_ctvit_volume(golden, name):
    volume = prep.load_ctvit_volume(PATHS[name], prep.read_metadata(PATHS[name]))
    assert volume.dtype == np.float32
    full_shape = golden.get(f"full_shape_{name}", [1, 201, 128, 128])
    assert [1, *volume.shape] == list(full_shape)
    close(volume[SHOWN_SLICES], golden[f"vol_{name}"][0])


def test_superres_volume(golden):
    path = PATHS["acc_a"]
    volume = prep.load_superres_volume(path, prep.read_metadata(path))
    assert volume.shape == (201, 512, 512)
    close(volume[::100, ::4, ::4], golden["sr512_acc_a"][0])


def test_kept_volumes():
    meta = json.loads((GOLDEN / "prep.json").read_text())
    kept = [name for name, path in PATHS.items() if prep.accepted(nib.load(path).shape[2])]
    assert kept == meta["kept_by_reference"]
    assert [n for n in (99, 100, 600, 601) if prep.accepted(n)] == [100, 600]


def test_low_res_file(golden, tmp_path):
    close(
        prep.load_low_res_volume(GOLDEN / "prep/acc_a_1_lowres.nii.gz"),
        golden["lowres_tensor_acc_a_1"][0],
    )
    given = golden["tensor_to_nifti_input"][0]  # [depth, rows, columns]
    path = tmp_path / "low.nii.gz"
    prep.write_low_res_volume(path, given)
    for image in (nib.load(path), nib.load(GOLDEN / "prep/written_by_tensor_to_nifti.nii.gz")):
        close(image.get_fdata(), golden["tensor_to_nifti_array"])
        np.testing.assert_array_equal(image.affine, golden["tensor_to_nifti_affine"])
        assert image.get_data_dtype() == np.float32
    close(prep.load_low_res_volume(path), golden["roundtrip_lowres"][0])
    close(prep.load_low_res_volume(path), (given + 1) / 2)


def test_resize_slice(golden):
    expected = golden["resize_out"]
    close(prep.resize_slice(golden["resize_in"], *expected.shape), expected)


def test_usable_slices(golden):
    table = golden["cast_num_frames_table"]
    assert [prep.usable_slices(n, patch) for patch, n, _ in table] == table[:, 2].tolist()
    assert prep.usable_slices(201, 1) == 201  # the reference returns an empty volume
    with pytest.raises(ValueError, match="at least 1"):
        prep.usable_slices(0, 2)
