"""DICOM series against what was written, and what is no volume."""

import numpy as np
import pytest
from chest_ct import SPACING_MM, chest

from gct_jax.errors import InputError

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid  # noqa: E402

from gct_jax.volumes.dicom import CLASSIC, ENHANCED, find_series, read_dicom  # noqa: E402

VOLUME = chest()[10:30]


def dataset(image, position, **options):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = options.pop("kind", CLASSIC)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID = options.pop("uid", "1.2.3")
    ds.StudyInstanceUID, ds.PatientID, ds.SeriesNumber = "1.2", "P", 4
    ds.PatientAge, ds.PatientSex, ds.Modality = "065Y", "F", options.pop("modality", "CT")
    ds.ImageType = options.pop("image_type", ["ORIGINAL", "PRIMARY", "AXIAL"])
    ds.Rows, ds.Columns = image.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.ImageOrientationPatient = options.pop("orientation", [1, 0, 0, 0, 1, 0])
    ds.ImagePositionPatient = [float(x) for x in position]
    ds.PixelSpacing = list(SPACING_MM[1:])
    slope, intercept = options.pop("rescale", (1, -1024))
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.PixelData = np.rint((image - intercept) / slope).astype("<i2").tobytes()
    assert not options
    return ds


def write(folder, step=(0.0, 0.0, 8.0), skip=(), compress=False, **options):
    """The volume as a series: rows to the back, columns to the left, feet first; file names say
    nothing of the order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, image in enumerate(VOLUME):
        if k in skip:
            continue
        place = np.array([-189.0, -189.0, -76.0]) + k * np.array(step)
        ds = dataset(image, place, **{n: v(k) if callable(v) else v for n, v in options.items()})
        if compress:
            ds.compress(RLELossless)
        files.append(folder / f"{(k * 37) % 101:03d}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    return files


def read(folder):
    (series,) = find_series(sorted(folder.iterdir()))
    assert series.reason is None
    return read_dicom(series.files, "series")


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "RLE"])
def test_a_series_in_any_order(tmp_path, compress):
    write(tmp_path, compress=compress, rescale=lambda k: (1, -1024 + k % 3))
    ct = read(tmp_path)
    np.testing.assert_allclose(ct.volume_hu, np.rint(VOLUME).clip(-1024), atol=1)
    np.testing.assert_allclose(ct.spacing_mm, SPACING_MM)
    # Patient's coordinates of the first voxel: DICOM's are LPS.
    np.testing.assert_allclose(ct.affine @ [0, 0, 0, 1], [189, 189, -76, 1])


def test_head_first_series_is_turned(tmp_path):
    write(tmp_path, step=(0.0, 0.0, -8.0))
    np.testing.assert_allclose(read(tmp_path).volume_hu, np.rint(VOLUME)[::-1].clip(-1024), atol=1)


def test_agrees_with_simpleitk(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    write(tmp_path)
    ct = read(tmp_path)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_allclose(itk.GetArrayFromImage(image).clip(-1024), ct.volume_hu, atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing()[::-1], ct.spacing_mm)


def test_a_tilted_gantry_is_set_upright(tmp_path):
    write(tmp_path, step=(0.0, 2.0, 8.0))
    ct = read(tmp_path)
    assert any("sheared" in note for note in ct.notes)
    steps = ct.affine[:3, :3] / ct.spacing_mm
    np.testing.assert_allclose(steps.T @ steps, np.eye(3), atol=1e-6)


def test_an_enhanced_file(tmp_path):
    ds = dataset(VOLUME, (0, 0, 0), kind=ENHANCED[0])
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
                 "RescaleSlope", "RescaleIntercept"):  # fmt: skip
        delattr(ds, name)
    ds.NumberOfFrames = len(VOLUME)

    def group(**sequences):
        holder = Dataset()
        for sequence, values in sequences.items():
            item = Dataset()
            for name, value in values.items():
                setattr(item, name, value)
            setattr(holder, sequence, [item])
        return holder

    ds.SharedFunctionalGroupsSequence = [
        group(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": list(SPACING_MM[1:])},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": -1024},
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        group(PlanePositionSequence={"ImagePositionPatient": [-189.0, -189.0, -76.0 + 8.0 * k]})
        for k in range(len(VOLUME))
    ]
    ds.save_as(tmp_path / "all.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read(tmp_path).volume_hu, np.rint(VOLUME).clip(-1024), atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": (7,)}, "1 slice.* missing after"),
        ({"skip": (7, 8)}, "2 slice.* missing after"),
        ({"orientation": lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, -1]}, "directions"),
        ({"skip": tuple(range(3, 20))}, "3 slices are no volume"),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, options, message):
    write(tmp_path, **options)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_uneven_slices_and_two_acquisitions(tmp_path):
    files = write(tmp_path)
    ds = pydicom.dcmread(files[5])
    ds.ImagePositionPatient = [-189.0, -189.0, ds.ImagePositionPatient[2] + 3.0]
    ds.save_as(files[5])
    with pytest.raises(InputError, match="unevenly spaced"):
        read(tmp_path)
    ds.ImagePositionPatient = pydicom.dcmread(files[6]).ImagePositionPatient
    ds.save_as(files[5])
    with pytest.raises(InputError, match="several acquisitions"):
        read(tmp_path)


def test_a_repeated_slice_is_taken_once(tmp_path):
    files = write(tmp_path)
    (tmp_path / "again.dcm").write_bytes(files[4].read_bytes())
    ct = read(tmp_path)
    assert ct.volume_hu.shape == VOLUME.shape and "came twice" in " ".join(ct.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modality": "RTSTRUCT"}, "no CT images"),
        ({"image_type": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    ],
)
def test_series_that_are_no_volumes(tmp_path, options, reason):
    write(tmp_path, **options)
    (series,) = find_series(tmp_path.iterdir())
    assert reason in series.reason


def test_several_series_in_a_folder(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", uid="1.2.4")
    found = find_series(tmp_path.rglob("*.dcm"))
    assert [len(series.files) for series in found] == [20, 20]
    assert (found[0].patient, found[0].age, found[0].sex) == ("P", "065Y", "F")


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_file_is_named(tmp_path, damage):
    files = write(tmp_path, compress=True)
    content = files[3].read_bytes()
    files[3].write_bytes(content[:-900] if damage == "cut" else b"\0" * 132 + content[132:200])
    with pytest.raises(InputError, match=files[3].name):
        read(tmp_path)
