"""Geometry against nibabel's own canonical form and world coordinates; refusals one by one."""

import functools
import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gct_jax.errors import InputError
from gct_jax.volumes import nifti
from gct_jax.volumes.grid import centred_affine, regrid_affine
from gct_jax.volumes.nifti import write_placed_volume, write_volume

# These arrays are a few voxels, not the size of a body; tests/volumes/test_doubtful.py has those.
read_volume = functools.partial(nifti.read_volume, trust_spacing=True)

SHAPE = (6, 7, 8)
SPACING_MM = (0.7, 0.8, 2.5)
ALL_AXES = [
    "".join(letters)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*order)
]


def random_ct(shape=SHAPE, seed=0):
    """Whole HU values, every voxel different from its neighbours."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def make_affine(axes, degrees=0.0, spacing=SPACING_MM, origin=(-120.0, 35.0, -400.0)):
    """Affine whose voxel axes point along `axes` ("LAS"), then turned about an oblique line."""
    towards = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1),
               "I": (0, 0, -1)}  # fmt: skip
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([1, 2, 2]) / 3).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([towards[axis] for axis in axes]).T * spacing
    affine[:3, 3] = origin
    return affine


def save(path, data, affine, **header):
    image = nib.Nifti1Image(data, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def internal_from_canonical(image):
    """[depth S, height P, width L] by way of nibabel's RAS form."""
    return nib.as_closest_canonical(image).get_fdata()[::-1, ::-1, :].transpose(2, 1, 0)


def world(affine, index):
    return affine[:3, :3] @ index + affine[:3, 3]


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_any_orientation(tmp_path, axes, degrees):
    path = save(tmp_path / "ct.nii", random_ct(), make_affine(axes, degrees))
    ct, image = read_volume(path), nib.load(path)
    np.testing.assert_array_equal(ct.volume_hu, internal_from_canonical(image))
    assert ct.volume_hu.dtype == np.float32
    assert ct.stored_axes == axes
    assert ct.oriented

    # the voxel with a mark lies at the same place in the patient
    mark = np.unravel_index(np.argmax(ct.volume_hu == ct.volume_hu[1, 2, 3]), ct.volume_hu.shape)
    stored = np.argwhere(image.get_fdata() == ct.volume_hu[mark])
    places = [world(image.affine, index) for index in stored]
    assert np.min(np.abs(places - world(ct.affine, mark)).max(axis=1)) < 1e-3
    spacing = dict(zip(("LR", "PA", "IS"), (None,) * 3, strict=True))
    for axis, millimetres in zip(axes, SPACING_MM, strict=True):
        spacing[next(pair for pair in spacing if axis in pair)] = millimetres
    np.testing.assert_allclose(
        ct.spacing_mm, [spacing["IS"], spacing["PA"], spacing["LR"]], rtol=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(
    axes=st.sampled_from(ALL_AXES),
    degrees=st.floats(-40, 40),
    shape=st.tuples(*[st.integers(2, 6)] * 3).filter(lambda shape: np.prod(shape) > 20),
)
def test_written_as_it_was_stored(tmp_path_factory, axes, degrees, shape):
    folder = tmp_path_factory.mktemp("round_trip")
    first = save(folder / "first.nii", random_ct(shape), make_affine(axes, degrees))
    ct = read_volume(first)
    write_placed_volume(folder / "second.nii", ct.volume_hu, ct.affine, ct.stored_order)
    one, two = nib.load(first), nib.load(folder / "second.nii")
    np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-4)


def test_written_file(tmp_path):
    """What `generate` writes: int16, RAS, millimetres, both codes, centred, no scaling."""
    volume = np.random.default_rng(1).normal(0, 500, (5, 6, 7)) + 0.3
    volume[0, 0, 0], volume[0, 0, 1] = 1e6, -1e6
    path = tmp_path / "deep" / "volume.nii.gz"
    write_volume(path, volume, (9.0, 1.4, 1.5))
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == pytest.approx((1.5, 1.4, 9.0))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    np.testing.assert_allclose(world(image.affine, (np.array(image.shape) - 1) / 2), 0, atol=1e-5)
    stored = np.clip(np.rint(volume), -32768, 32767)
    np.testing.assert_array_equal(
        np.asanyarray(image.dataobj), stored.transpose(2, 1, 0)[::-1, ::-1]
    )
    assert list(path.parent.iterdir()) == [path]


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, random_ct(), (1, 1, 1))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_regrid_keeps_centre_and_directions():
    affine = make_affine("SPL", 25.0)
    new = regrid_affine(affine, (6, 7, 8), (3, 5, 20), (4.0, 2.0, 0.5))
    np.testing.assert_allclose(
        world(new, np.array([1.0, 2.0, 9.5])), world(affine, np.array([2.5, 3.0, 3.5]))
    )
    np.testing.assert_allclose(new[:3, :3] / (4.0, 2.0, 0.5), affine[:3, :3] / SPACING_MM)
    assert nib.aff2axcodes(centred_affine((3, 4, 5), (1, 2, 3))) == ("S", "P", "L")


def test_scaling_is_applied_once_and_padding_clipped(tmp_path):
    data = random_ct() + 1024
    data[0, 0, :3] = (-7168, -1024, 4095)  # -8192 and -2048 HU once shifted, and metal
    path = tmp_path / "ct.nii.gz"
    image = nib.Nifti1Image(data, make_affine("RAS"))
    image.header.set_slope_inter(1.0, -1024.0)
    nib.save(image, path)
    written = nib.load(path)
    assert written.dataobj.inter == -1024
    expected = np.maximum(internal_from_canonical(written), -1024)
    np.testing.assert_array_equal(read_volume(path).volume_hu, expected)
    assert {-1024, 3071} <= set(expected.ravel())


def test_units_other_than_millimetres(tmp_path):
    affine = make_affine("LPS")
    affine[:3] /= 1000
    image = nib.Nifti1Image(random_ct(), affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "ct.nii")
    assert read_volume(tmp_path / "ct.nii").spacing_mm == pytest.approx((2.5, 0.8, 0.7))


def test_trailing_axes_of_one_are_dropped(tmp_path):
    path = save(tmp_path / "ct.nii", random_ct()[..., None], make_affine("RAS"))
    assert read_volume(path).volume_hu.shape == SHAPE[::-1]


def test_a_file_without_orientation_is_marked(tmp_path):
    image = nib.Nifti1Image(random_ct(), None)
    image.header.set_zooms(SPACING_MM)
    nib.save(image, tmp_path / "ct.nii")
    ct = read_volume(tmp_path / "ct.nii")
    assert not ct.oriented
    assert ct.spacing_mm == pytest.approx(SPACING_MM[::-1])


def refuse(path, words):
    with pytest.raises(InputError, match=words) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_a_volume(tmp_path):
    refuse(tmp_path / "absent.nii.gz", "no such file")
    refuse(tmp_path / f"{'long' * 100}.nii.gz", "no such file")
    refuse(tmp_path, "is a folder")
    text = tmp_path / "text.nii.gz"
    text.write_text("hello")
    refuse(text, "not a readable NIfTI")
    empty = tmp_path / "empty.nii"
    empty.touch()
    refuse(empty, "not a readable NIfTI")
    other = tmp_path / "other.mgz"
    nib.save(nib.MGHImage(random_ct().astype(np.float32), np.eye(4)), other)
    refuse(other, "is a FreeSurfer volume")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("compressed", [True, False])
def test_truncated(tmp_path, kept, compressed):
    path = save(tmp_path / "ct.nii.gz", random_ct(), np.eye(4))
    data = path.read_bytes() if compressed else gzip.decompress(path.read_bytes())
    path = path if compressed else tmp_path / "ct.nii"
    path.write_bytes(data[: int(len(data) * kept)])
    refuse(path, "not a readable NIfTI")


def test_damaged_in_the_middle(tmp_path):
    path = save(tmp_path / "ct.nii.gz", random_ct(), np.eye(4))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\0" * 40
    path.write_bytes(data)
    refuse(path, "not a readable NIfTI")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (6, 7, 8, 2), (1, 7, 8)])
def test_not_three_axes(tmp_path, shape):
    refuse(save(tmp_path / "ct.nii", random_ct(shape), np.eye(4)), "is not one 3-D volume")


def test_colours_are_no_ct(tmp_path):
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refuse(save(tmp_path / "ct.nii", rgb, np.eye(4)), "are not a CT")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    data = random_ct().astype(np.float32)
    data[1, 2, 3] = value
    refuse(save(tmp_path / "ct.nii", data, np.eye(4)), "NaN or infinite")


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan])
def test_bad_spacing(tmp_path, spacing):
    path = save(tmp_path / "ct.nii", random_ct(), make_affine("RAS"))
    data = bytearray(path.read_bytes())
    data[76 + 8 : 76 + 12] = np.float32(spacing).tobytes()  # pixdim[2] of the header
    path.write_bytes(data)
    refuse(path, "is not positive")


@pytest.mark.parametrize(
    ("row", "words"),
    [([0, 0, 0, 0], "2.5, 0.0] is not pos"), ([0, 0, np.inf, 0], "the affine of its sform has")],
)
def test_affine_that_places_no_voxels(tmp_path, row, words):
    image = nib.Nifti1Image(random_ct(), np.diag([0.7, 2.5, 9, 1]))
    image.header["sform_code"] = 1
    image.header["srow_z"] = row
    image.header["vox_offset"] = 352
    header = image.header.binaryblock + bytes(4)
    (tmp_path / "ct.nii").write_bytes(header + random_ct().tobytes(order="F"))
    refuse(tmp_path / "ct.nii", words)


def test_parallel_axes(tmp_path):
    affine = make_affine("RAS")
    affine[:3, 1] = affine[:3, 0]
    image = nib.Nifti1Image(random_ct(), np.eye(4))
    image.set_sform(affine, code=1)
    nib.save(image, tmp_path / "ct.nii")
    refuse(tmp_path / "ct.nii", "parallel")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu / 1000, "unit range"),
        (lambda hu: (hu + 1000) / 2000, "unit range"),
        (lambda hu: (hu + 1000) / 2000 * 255, "8-bit"),
        (lambda hu: hu + 1024, "intercept left out"),
        (lambda hu: np.where(hu < 0, -2048, hu) + 1024, "intercept left out"),
        (lambda hu: np.minimum(hu, 600) - 1024, "intercept applied twice"),
        (lambda hu: 0 * hu, "equal"),
    ],
)
def test_not_hounsfield(tmp_path, change, words):
    data = change(random_ct().astype(np.float32)).astype(np.float32)
    refuse(save(tmp_path / "ct.nii", data, np.eye(4)), f"not HU: .*{words}")


def test_nothing_is_written_after_a_refusal(tmp_path):
    path = tmp_path / "volume.nii.gz"
    path.write_text("kept")
    with pytest.raises(InputError, match="NaN or infinite"):
        write_volume(path, np.full(SHAPE, np.nan), (1, 1, 1))
    with pytest.raises(InputError, match=r"must end in \.nii"):
        write_volume(tmp_path / "volume.png", random_ct(), (1, 1, 1))
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]
