"""Files that contradict themselves or say too little: refused with both values, or read and said.

The phantom is the size of a chest, with air in its right lung only, so that an exchange of sides or
of front and back is measurable.
"""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from gct_jax.errors import InputError
from gct_jax.volumes.grid import affine_spacing, is_orthogonal
from gct_jax.volumes.nifti import read_volume, write_placed_volume

SHAPE = (64, 64, 33)
SPACING_MM = (5.625, 5.625, 9.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
AFFINE[:3, 3] = (-177.19, -177.19, -144.0)
LUNG = np.array([44.0, 36.0, 16.0])  # its centre in voxels: right of the middle, in front of it


def phantom(shape=SHAPE):
    """int16 HU [to the right, to the front, to the head]."""
    x, y, _ = np.indices(shape)
    hu = np.where(np.hypot((x - 31.5) / 28, (y - 31.5) / 22) < 1, 40, -1000)
    hu[np.hypot((x - LUNG[0]) / 8, (y - LUNG[1]) / 12) < 1] = -850
    return hu.astype(np.int16)


def save(path, affine=AFFINE, sform=1, qform=1, data=None, units="mm", q_affine=None):
    image = nib.Nifti1Image(phantom() if data is None else data, affine)
    image.header.set_xyzt_units(units)
    image.set_qform(affine if q_affine is None else q_affine, code=qform)
    image.set_sform(affine, code=sform)
    nib.save(image, path)
    return path


def patched(path, offset, value):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    return path


def lung_mm(ct):
    """Where the lung's centre of mass lies in the world."""
    lung = (ct.volume_hu < -700) & (ct.volume_hu > -950)
    voxels = np.argwhere(binary_erosion(lung))  # without the body's edge, where interpolated
    return ct.affine[:3, :3] @ voxels.mean(0) + ct.affine[:3, 3]


def written(ct, path):
    write_placed_volume(path, ct.volume_hu, ct.affine, ct.stored_order, ct.form_code)
    return nib.load(path)


def refuse(path, *words, **options):
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said
    assert all(word in said for word in words), said


def turned(degrees, axis=2):
    rotation = np.eye(4)
    rotation[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.eye(3)[axis]).as_matrix()
    return rotation


# --- Sheared axes


@pytest.mark.parametrize("tilt", [(1, 2, 0.4), (0, 1, 0.2), (2, 1, 0.3), (0, 2, -0.3)])
def test_a_sheared_volume_is_set_upright_and_said_so(tmp_path, tilt):
    row, column, amount = tilt
    sheared = AFFINE.copy()
    sheared[row, column] = amount * SPACING_MM[column]
    ct = read_volume(save(tmp_path / "ct.nii", sheared))
    assert is_orthogonal(ct.affine, ct.volume_hu.shape)
    (note,) = ct.notes
    assert "sheared by up to" in note and "resampled to" in note
    np.testing.assert_allclose(lung_mm(ct), (sheared @ [*LUNG, 1])[:3], atol=1.5)
    back = written(ct, tmp_path / "back.nii.gz")
    np.testing.assert_allclose(back.get_sform(), back.get_qform(), atol=1e-3)
    assert (back.header["sform_code"], back.header["qform_code"]) == (1, 1)


def test_a_tilted_gantry_keeps_its_slices(tmp_path):
    tilted = AFFINE.copy()
    tilted[1, 2] = 9.0 * np.tan(np.radians(20))
    ct = read_volume(save(tmp_path / "ct.nii", tilted))
    assert ct.spacing_mm == pytest.approx((9.0, 5.625, 5.625))
    assert ct.volume_hu.shape[0] == 33 and ct.volume_hu.shape[2] == 64
    middle = ct.volume_hu[16]
    assert (middle[:, 5:10] > -1030).all() and np.ptp(middle) > 800


def test_rounding_in_a_header_is_no_shear(tmp_path):
    rough = turned(12) @ turned(7, 0) @ AFFINE
    rough[:3, :3] = np.round(rough[:3, :3], 4)
    ct = read_volume(save(tmp_path / "ct.nii", rough))
    assert ct.notes == ()
    np.testing.assert_array_equal(np.unique(ct.volume_hu), [-1000, -850, 40])


def test_a_sheared_affine_is_not_written(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(InputError, match="not at right angles"):
        write_placed_volume(tmp_path / "x.nii", phantom(), sheared)


# --- Statements that disagree


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            AFFINE @ np.diag([1, 1, 12 / 9, 1]),
            ("spacing", "5.625 x 5.625 x 12", "5.625 x 5.625 x 9"),
        ),
        (AFFINE @ np.diag([-1, 1, 1, 1]), ("handedness", "LAS", "RAS")),
        (AFFINE @ np.diag([-1, -1, 1, 1]), ("direction", "180.00 degrees", "LPS", "RAS")),
        (turned(5) @ AFFINE, ("direction", "5.00 degrees")),
        (turned(90, 0) @ AFFINE, ("direction", "90.00 degrees")),
    ],
)
def test_sform_and_qform_disagree(tmp_path, changed, words):
    path = save(tmp_path / "ct.nii", changed, q_affine=AFFINE)
    refuse(path, "sform and qform disagree", "--form sform or --form qform", *words)
    for form, affine in (("sform", changed), ("qform", AFFINE)):
        ct = read_volume(path, form=form)
        assert ct.form == form
        np.testing.assert_allclose(lung_mm(ct), (affine @ [*LUNG, 1])[:3], atol=0.1)


def test_positions_disagree(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 40
    refuse(save(tmp_path / "ct.nii", moved, q_affine=AFFINE), "position", "-137.2", "-177.2")


@pytest.mark.parametrize("code", [1, 2, 4])
def test_an_identity_sform_over_real_zooms(tmp_path, code):
    path = save(tmp_path / "ct.nii", AFFINE, sform=0)
    identity = struct.pack("<12f", *np.eye(4)[:3].ravel())
    patched(patched(path, 280, identity), 254, struct.pack("<h", code))
    refuse(path, "spacing", "1 x 1 x 1 mm", "5.625 x 5.625 x 9 mm", "--form")
    patched(path, 252, struct.pack("<h", 0))  # no qform either: pixdim alone says otherwise
    refuse(path, "sform and pixdim disagree", "1 x 1 x 1 mm", "5.625 x 5.625 x 9 mm", "--spacing")
    ct = read_volume(path, spacing_mm=(9.0, 5.625, 5.625))
    assert ct.spacing_mm == (9.0, 5.625, 5.625)
    refuse(path, "states no qform", form="qform")
    refuse(path, "64 x 64 mm", form="sform")


def test_a_qform_cannot_say_shear_and_is_not_held_against_it(tmp_path):
    sheared = turned(10) @ AFFINE
    sheared[1, 2] += 3
    ct = read_volume(save(tmp_path / "ct.nii", sheared))
    np.testing.assert_allclose(lung_mm(ct), (sheared @ [*LUNG, 1])[:3], atol=1.5)


@pytest.mark.parametrize("degrees", [0, 3, 30, 90, 179.99, 180])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_both_forms_of_one_affine_agree_at_any_angle(tmp_path, degrees, axis):
    affine = turned(degrees, axis) @ turned(8, (axis + 1) % 3) @ AFFINE
    ct = read_volume(save(tmp_path / "ct.nii", affine))
    back = written(ct, tmp_path / "back.nii")
    np.testing.assert_array_equal(back.get_fdata(), phantom())
    np.testing.assert_allclose(back.affine, affine, atol=1e-3)


def test_an_unusable_quaternion(tmp_path):
    path = patched(save(tmp_path / "ct.nii"), 256, struct.pack("<3f", 3, 3, 3))
    refuse(path, "its qform is unusable", "--form sform")
    assert read_volume(path, form="sform").form == "sform"


# --- Codes


@pytest.mark.parametrize(
    ("codes", "form", "expected"),
    [
        ((1, 1), "sform", 1),
        ((4, 0), "sform", 4),
        ((0, 2), "qform", 2),
        ((2, 1), "sform", 2),
        ((3, 3), "sform", 3),
    ],
)
def test_what_is_written_back_has_the_code_that_was_used(tmp_path, codes, form, expected):
    ct = read_volume(save(tmp_path / "ct.nii", sform=codes[0], qform=codes[1]))
    assert (ct.form, ct.form_code, ct.notes) == (form, expected, ())
    back = written(ct, tmp_path / "back.nii")
    assert (back.header["sform_code"], back.header["qform_code"]) == (expected, expected)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-4)


def test_a_file_without_orientation_comes_back_as_it_was(tmp_path):
    path = save(tmp_path / "ct.nii", sform=0, qform=0)
    ct = read_volume(path)
    (note,) = ct.notes
    assert "states no orientation" in note and "LAS" in note
    back = written(ct, tmp_path / "back.nii")
    assert (back.header["sform_code"], back.header["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(back.get_fdata(), phantom())
    assert back.header.get_zooms() == pytest.approx(SPACING_MM)
    np.testing.assert_allclose(back.affine, nib.load(path).affine)
    refuse(path, "states no orientation", "--require-orientation", require_orientation=True)


def test_an_unknown_code_is_refused(tmp_path):
    path = patched(save(tmp_path / "ct.nii"), 254, struct.pack("<h", 77))
    refuse(path, "sform_code = 77")
    assert read_volume(path, form="qform").form == "qform"


# --- Size


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1e-3, ("0.36 x 0.36 mm", "metres instead of millimetres")),
        (0.1, ("29.7 x 36 x 36 mm", "centimetres")),
        (10.0, ("2,970 x 3,600 x 3,600 mm", "ten times too large")),
        (1e3, ("3.6e+05 mm", "micrometres instead")),
        (0.02, ("5.94 x 7.2 x 7.2 mm", "is the spacing in the header right")),
    ],
)
def test_a_size_that_no_chest_has(tmp_path, factor, words):
    affine = AFFINE.copy()
    affine[:3] *= factor
    path = save(tmp_path / "ct.nii", affine)
    refuse(path, *words, "--spacing", "--trust-spacing")
    assert read_volume(path, trust_spacing=True).spacing_mm[0] == pytest.approx(9 * factor)
    ct = read_volume(path, spacing_mm=(9.0, 5.625, 5.625))
    assert ct.spacing_mm == (9.0, 5.625, 5.625)
    assert "9 x 5.625 x 5.625 mm as stated" in ct.notes[0]


def test_the_size_after_resampling_counts_as_well(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 36.0
    path = save(tmp_path / "ct.nii", sheared, qform=0)
    data = bytearray(path.read_bytes())
    data[76 + 12 : 76 + 16] = np.float32(np.hypot(36, 9)).tobytes()  # pixdim as the sform has it
    path.write_bytes(data)
    refuse(path, "which no chest CT is", "x 1,5")


def test_the_unit_of_the_header_is_named(tmp_path):
    refuse(save(tmp_path / "ct.nii", units="micron"), "is the header's unit, micrometre, right?")
    refuse(save(tmp_path / "ct.nii", units="meter"), "is the header's unit, metre, right?")


def test_one_axis_alone_is_enough(tmp_path):
    for scales in ((0.1, 1, 1), (1, 0.1, 1), (1, 1, 9)):
        refuse(save(tmp_path / "ct.nii", AFFINE @ np.diag([*scales, 1])), "which no chest CT is")
    refuse(save(tmp_path / "ct.nii", AFFINE, units="meter"), "which no chest CT is")
    refuse(save(tmp_path / "ct.nii", AFFINE, units="micron"), "which no chest CT is")


# --- Turned, units, offsets, pairs


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [45, -45, 135, 44.999999])
def test_halfway_between_two_axes_the_grid_of_the_file_is_kept(tmp_path, degrees, axis):
    affine = turned(degrees, axis) @ AFFINE
    ct = read_volume(save(tmp_path / "ct.nii", affine))
    assert "45 degrees off" in ct.notes[0]
    back = written(ct, tmp_path / "back.nii")
    np.testing.assert_array_equal(back.get_fdata(), phantom())
    np.testing.assert_allclose(back.affine, affine, atol=1e-3)


@pytest.mark.parametrize("code", [4, 5, 7])
def test_a_unit_of_length_that_is_none(tmp_path, code):
    path = patched(save(tmp_path / "ct.nii"), 123, bytes([code]))
    refuse(path, f"xyzt_units = {code} names no unit of length", "--spacing")
    assert read_volume(path, spacing_mm=(9.0, 5.625, 5.625)).spacing_mm == (9.0, 5.625, 5.625)


@pytest.mark.parametrize("code", [2 + 8, 2 + 64, 2 + 192])
def test_the_unit_of_time_does_not_matter(tmp_path, code):
    path = patched(save(tmp_path / "ct.nii"), 123, bytes([code]))
    assert read_volume(path).spacing_mm == pytest.approx((9.0, 5.625, 5.625))


@pytest.mark.parametrize("offset", [0.0, 100.0, 348.0, np.nan])
def test_voxels_that_would_begin_in_the_header(tmp_path, offset):
    path = patched(save(tmp_path / "ct.nii"), 108, struct.pack("<f", offset))
    refuse(path, "vox_offset")


def test_a_pair_of_files(tmp_path):
    image = nib.Nifti1Pair(phantom(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "ct.img")
    for name in ("ct.img", "ct.hdr"):
        ct = read_volume(tmp_path / name)
        np.testing.assert_allclose(lung_mm(ct), (AFFINE @ [*LUNG, 1])[:3], atol=0.1)
        np.testing.assert_array_equal(np.unique(ct.volume_hu), [-1000, -850, 40])
    (tmp_path / "other.nii").write_bytes((tmp_path / "ct.hdr").read_bytes() + phantom().tobytes())
    refuse(tmp_path / "other.nii", "is the header of a .hdr/.img pair")
    (tmp_path / "ct.hdr").unlink()
    refuse(tmp_path / "ct.img", "its header ct.hdr is missing")


def test_a_form_that_is_unusable_is_named_with_the_other(tmp_path):
    path = save(tmp_path / "ct.nii")
    patched(path, 280, struct.pack("<f", np.nan))
    refuse(path, "its sform has NaN", "--form qform")
    assert read_volume(path, form="qform").form == "qform"
    patched(path, 280, bytes(48))
    refuse(path, "not positive", "--form qform")


def test_a_stated_spacing_replaces_an_impossible_one(tmp_path, capfd):
    path = patched(save(tmp_path / "ct.nii", sform=0), 80, struct.pack("<3f", -5.0, 0.0, np.nan))
    refuse(path, "is not positive", "--spacing")
    ct = read_volume(path, spacing_mm=(9.0, 5.6, 5.6))
    assert ct.spacing_mm == pytest.approx((9.0, 5.6, 5.6))
    assert capfd.readouterr() == ("", "")


def test_names_and_compression_that_do_not_fit(tmp_path):
    packed = save(tmp_path / "ct.nii.gz")
    (tmp_path / "other.nii").write_bytes(packed.read_bytes())
    refuse(tmp_path / "other.nii", "compressed by gzip; rename it")
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(packed.read_bytes()))
    refuse(tmp_path / "plain.nii.gz", "not compressed, but named .gz")
    image = nib.Nifti1Pair(phantom(), AFFINE)
    nib.save(image, tmp_path / "pair.img")
    (tmp_path / "pair.img").unlink()
    refuse(tmp_path / "pair.hdr", "its voxels pair.img are missing")


def test_nifti_2(tmp_path):
    image = nib.Nifti2Image(phantom(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "ct.nii.gz")
    assert read_volume(tmp_path / "ct.nii.gz").form_code == 1


def test_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(phantom(), AFFINE, header)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "ct.nii")
    assert (tmp_path / "ct.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    np.testing.assert_array_equal(
        np.unique(read_volume(tmp_path / "ct.nii").volume_hu), [-1000, -850, 40]
    )


# --- Other formats

DICOM_FILE = bytes(128) + b"DICM" + bytes(400)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ct.nrrd", b"NRRD0005\ntype: short\n", ("NRRD", "SimpleITK")),
        ("ct.mha", b"ObjectType = Image\nNDims = 3\n", ("MetaImage", "SimpleITK")),
        ("ct.dcm", DICOM_FILE, ("DICOM", "dcm2niix")),
        ("ct", DICOM_FILE, ("DICOM", "dcm2niix")),
        ("ct.nii", b"NRRD0005\n", ("NRRD",)),
        ("ct.nii.gz", gzip.compress(b"NRRD0005\n" + bytes(600), mtime=0), ("NRRD",)),
        ("ct.mnc", b"\x89HDF\r\n\x1a\n", ("HDF5",)),
        ("ct.zip", b"PK\x03\x04", ("ZIP",)),
        ("ct.npy", b"\x93NUMPY", ("NumPy", "no orientation")),
        ("ct.png", b"\x89PNG\r\n", ("PNG", "HU")),
        ("ct.hdr", struct.pack("<i", 348) + bytes(344), ("Analyze 7.5", "left and right")),
        ("ct.nrrd", b"", ("NRRD",)),
        ("ct.txt", b"hello", ("not a readable NIfTI",)),
        ("ct.bin", b"hello" * 200, ("no format that is known here",)),
        ("ct.img", b"", ("its header ct.hdr is missing",)),
        ("ct.hdr", struct.pack(">i", 348) + bytes(344), ("Analyze 7.5",)),
    ],
)
def test_the_format_that_was_seen_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    refuse(path, *words)


def test_a_folder_of_dicom_files(tmp_path):
    (tmp_path / "series").mkdir()
    refuse(tmp_path / "series", "is a folder, not a file")
    (tmp_path / "series" / "0001").write_bytes(DICOM_FILE)
    refuse(tmp_path / "series", "folder of DICOM files", "dcm2niix")


def test_spacing_is_along_depth_height_and_width(tmp_path):
    sagittal = np.zeros((4, 4))
    sagittal[1, 0], sagittal[2, 1], sagittal[0, 2], sagittal[3, 3] = 5.0, 9.0, 6.0, 1.0
    data = phantom().transpose(1, 2, 0)
    ct = read_volume(save(tmp_path / "ct.nii", sagittal, data=data), spacing_mm=(8.0, 5.5, 5.6))
    assert affine_spacing(ct.affine) == pytest.approx((8.0, 5.5, 5.6))
    assert ct.volume_hu.shape == (33, 64, 64)
