"""CT series in DICOM files: classic (a file per slice) and enhanced (all slices in one), read right
or refused with the reason.

The slices are ordered by where they lie, never by number or name. With r, c the directions in which
columns and rows grow (Image Orientation), p_0 and p_last the first and last Image Position and n
slices, all in DICOM's LPS millimetres,

    place(i, j, k) = p_0 + r i column spacing + c j row spacing + k (p_last - p_0) / (n - 1)   (1)

which is sheared if the gantry was tilted, and then set upright like any sheared volume. Slope and
intercept are applied slice by slice. Needs the extra "dicom".
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gct_jax.errors import ConfigError, InputError
from gct_jax.volumes.canonical import CTVolume, canonical, require_field
from gct_jax.volumes.plausibility import require_hounsfield

CLASSIC = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
TO_RAS = np.diag([-1.0, -1.0, 1.0])
ALIKE = 1e-3  # of directions and, in mm, of pixel spacings
SAME_PLACE_MM = 0.01
UNEVEN = 0.05  # of the slice spacing: what rounded positions amount to
SHORTEST = 4  # slices; fewer are a localizer or a reformation
SCANNER_CODE = 1


class Series(NamedTuple):
    """The files of one series.

    uid: Series Instance UID.
    number: Series Number, or None.
    description: Series Description.
    patient: Patient ID; age: Patient's Age as DICOM writes it ("065Y"); sex: "M", "F" or "".
    study: Study Instance UID; accession: Accession Number.
    files: sorted by name.
    reason: why it is no CT volume; None: it may be one.
    """

    uid: str
    number: int | None
    description: str
    patient: str
    age: str
    sex: str
    study: str
    accession: str
    files: tuple[Path, ...]
    reason: str | None = None


class _Slice(NamedTuple):
    orientation: np.ndarray  # [2, 3], of columns and of rows
    position: np.ndarray  # [3]
    spacing: tuple[float, float]  # of rows, of columns
    slope: float
    intercept: float


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_series(files: Iterable[Path]) -> list[Series]:
    """The series among DICOM files, in the order of their UIDs; headers only are read.

    Raises:
      ConfigError: pydicom is missing.
      InputError: a file cannot be read.
    """
    by_uid: dict[str, list[tuple[Path, Any]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that are not used here
        for path in sorted(files):
            dataset = _read(path, pixels=False)
            by_uid.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append((path, dataset))
        return [_series(uid, members) for uid, members in sorted(by_uid.items())]


def _series(uid: str, members: list[tuple[Path, Any]]) -> Series:
    first = members[0][1]
    reasons = [reason for _, dataset in members if (reason := _no_volume(dataset))]
    number = first.get("SeriesNumber")

    def text(name: str) -> str:
        return str(first.get(name, "") or "")

    return Series(
        uid,
        None if number is None else int(number),
        text("SeriesDescription"),
        text("PatientID"),
        text("PatientAge"),
        text("PatientSex"),
        text("StudyInstanceUID"),
        text("AccessionNumber"),
        tuple(path for path, _ in members),
        reasons[0] if reasons else None,
    )


def _no_volume(dataset: Any) -> str | None:
    """Why a file is no part of a CT volume, or None."""
    kind = str(dataset.get("SOPClassUID", ""))
    if dataset.get("Modality") != "CT" or kind not in (CLASSIC, *ENHANCED):
        return f"no CT images (modality {dataset.get('Modality', 'not stated')})"
    if "LOCALIZER" in [str(word).upper() for word in dataset.get("ImageType", [])]:
        return "a localizer"
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        return f"{dataset.SamplesPerPixel} samples per pixel: a coloured picture"
    photometric = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if photometric != "MONOCHROME2":
        return f"photometric interpretation {photometric}"
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1 and kind == CLASSIC:
        return "several frames in a file that is no enhanced CT: their places are not stated"
    return None


def read_dicom(files: Sequence[Path], name: str, *, trust_spacing: bool = False) -> CTVolume:
    """Read one series, equation (1).

    Args:
      files: of `Series.files`.
      name: of the series, for messages.
      trust_spacing: accept a field of view that no chest CT has.

    Raises:
      ConfigError: pydicom, or what unpacks the images, is missing.
      InputError: the series is damaged, lacks slices, has slices of several kinds or in several
        directions, is unevenly spaced, or its values cannot be Hounsfield units.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that are not used here
        slices, images = _images(files)
    order, notes = _ordered(slices, images, name)
    slices, images = [slices[i] for i in order], [images[i] for i in order]
    first, last = slices[0], slices[-1]
    affine = np.eye(4)  # from (column, row, slice)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    affine[:3] = TO_RAS @ affine[:3]
    volume = np.stack(images).transpose(2, 1, 0)
    require_hounsfield(volume, name)
    if not trust_spacing:
        require_field(volume.shape, affine, name)
    return canonical(volume, affine, "dicom", SCANNER_CODE, notes)


def _images(files: Sequence[Path]) -> tuple[list[_Slice], list[np.ndarray]]:
    """The slices of all files, and their images in HU."""
    slices: list[_Slice] = []
    images: list[np.ndarray] = []
    for path in files:
        dataset = _read(path, pixels=True)
        reason = _no_volume(dataset)
        if reason:
            raise InputError(f"{path}: {reason}")
        frames = [_slice(path, dataset, frame) for frame in _frames(dataset)]
        pixels = _pixels(path, dataset)
        for one, image in zip(frames, pixels.reshape(-1, *pixels.shape[-2:]), strict=True):
            slices.append(one)
            images.append(_hounsfield(image, one, dataset))
    return slices, images


def _hounsfield(image: np.ndarray, one: _Slice, dataset: Any) -> np.ndarray:
    """float32 [rows, columns] in HU; padding far below air."""
    volume_hu = image.astype(np.float32) * np.float32(one.slope) + np.float32(one.intercept)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        limit = int(dataset.get("PixelPaddingRangeLimit", padding))
        low, high = sorted((int(padding), limit))
        volume_hu[(image >= low) & (image <= high)] = -8192
    return volume_hu


def _ordered(
    slices: list[_Slice], images: list[np.ndarray], name: str
) -> tuple[list[int], list[str]]:
    """Indices from one end of the patient to the other, each place once, and notes."""
    first = slices[0]
    for other, image in zip(slices, images, strict=True):
        if np.abs(other.orientation - first.orientation).max() > ALIKE:
            raise InputError(f"{name}: its slices lie in several directions")
        if np.abs(np.subtract(other.spacing, first.spacing)).max() > ALIKE:
            raise InputError(f"{name}: its slices have several pixel spacings")
        if image.shape != images[0].shape:
            raise InputError(f"{name}: its slices have several sizes")
    along = np.cross(first.orientation[0], first.orientation[1])
    places = np.array([float(one.position @ along) for one in slices])
    order: list[int] = []
    repeated = 0
    for i in np.argsort(places, kind="stable"):
        if order and places[i] - places[order[-1]] < SAME_PLACE_MM:
            if not np.array_equal(images[i], images[order[-1]]):
                raise InputError(
                    f"{name}: two different images at {places[i]:.2f} mm: it holds several "
                    "acquisitions; give each as a series of its own"
                )
            repeated += 1
        else:
            order.append(int(i))
    if len(order) < SHORTEST:
        raise InputError(f"{name}: {len(order)} slices are no volume")
    steps = np.diff(places[order])
    usual = float(np.median(steps))
    wrong = np.flatnonzero(np.abs(steps - usual) > UNEVEN * usual)
    if wrong.size:
        at, step = places[order][wrong[0]], steps[wrong[0]]
        times = step / usual
        if times > 1.5 and abs(times - round(times)) < 0.1:
            raise InputError(
                f"{name}: {round(times) - 1} slice(s) missing after {at:.2f} mm, where the next "
                f"one is {step:.3g} mm away and usually {usual:.3g}"
            )
        raise InputError(
            f"{name}: unevenly spaced slices, {step:.3g} mm after {at:.2f} mm and usually "
            f"{usual:.3g}"
        )
    note = f"{repeated} slice(s) came twice and were taken once"
    return order, [note] if repeated else []


def _frames(dataset: Any) -> list[tuple[Any, ...]]:
    """Where the attributes of each frame stand: its own groups before the shared ones."""
    if str(dataset.SOPClassUID) not in ENHANCED:
        return [(dataset,)]
    shared = list(dataset.get("SharedFunctionalGroupsSequence", []))
    return [(own, *shared) for own in dataset.get("PerFrameFunctionalGroupsSequence", [])]


def _slice(path: Path, dataset: Any, groups: tuple[Any, ...]) -> _Slice:
    def find(sequence: str, name: str) -> Any:
        for group in groups:
            holder = group.get(sequence, [None])[0] if group is not dataset else dataset
            if holder is not None and holder.get(name) is not None:
                return holder.get(name)
        raise InputError(f"{path}: it does not state {name}")

    try:
        orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
        position = find("PlanePositionSequence", "ImagePositionPatient")
        rows, columns = find("PixelMeasuresSequence", "PixelSpacing")
        slope = find("PixelValueTransformationSequence", "RescaleSlope")
        intercept = find("PixelValueTransformationSequence", "RescaleIntercept")
        one = _Slice(
            np.array(orientation, float).reshape(2, 3),
            np.array(position, float).reshape(3),
            (float(rows), float(columns)),
            float(slope),
            float(intercept),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: its geometry cannot be read ({error})") from None
    numbers = [*one.orientation.ravel(), *one.position, *one.spacing, one.slope, one.intercept]
    lengths = np.linalg.norm(one.orientation, axis=1)
    if not np.isfinite(numbers).all() or min(one.spacing) <= 0 or np.abs(lengths - 1).max() > 0.01:
        raise InputError(f"{path}: its geometry cannot be used (spacing {one.spacing} mm)")
    return one


def _pixels(path: Path, dataset: Any) -> np.ndarray:
    try:
        pixels: np.ndarray = dataset.pixel_array
    except ImportError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:  # pydicom and its plug-ins raise many kinds on damaged images
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", "")
        packing = getattr(syntax, "name", str(syntax))
        reason = " ".join(str(error).split())[:200]
        if "missing" in reason or "Unable to decompress" in reason:
            reason = f"{reason}; pip install '.[dicom]'"
        raise InputError(f"{path}: its image ({packing}) cannot be read: {reason}") from None
    return pixels


def _read(path: Path, pixels: bool) -> Any:
    try:
        import pydicom
    except ModuleNotFoundError:
        raise ConfigError("pydicom is missing, which reads DICOM; pip install '.[dicom]'") from None
    try:
        return pydicom.dcmread(os.fspath(path), stop_before_pixels=not pixels)
    except Exception as error:  # damaged files raise many kinds
        raise InputError(f"{path}: not a readable DICOM file ({error})") from None
