"""What kind of file a volume comes in, by its first bytes, and what reads the other kinds."""

import gzip
import os
import zlib
from pathlib import Path

from gct_jax.errors import InputError
from gct_jax.runtime.files import require_file

SIMPLE_ITK = "convert it to NIfTI, for example with SimpleITK's ReadImage and WriteImage"
DICOM = "convert it to NIfTI with dcm2niix"
NIBABEL = "convert it to NIfTI with nibabel"
UNPACK = "unpack it first"
PICTURE = "give the CT itself, with its values in HU"
# Bytes at an offset, the name of the format, and what to do.
SIGNATURES = (
    (0, b"NRRD", "an NRRD volume", SIMPLE_ITK),
    (0, b"ObjectType", "a MetaImage volume (MHA, MHD)", SIMPLE_ITK),
    (0, b"NDims", "a MetaImage volume (MHA, MHD)", SIMPLE_ITK),
    (128, b"DICM", "a DICOM file", DICOM),
    (0, b"\x89HDF", "an HDF5 file (MINC 2, .h5)", NIBABEL),
    (0, b"CDF", "a NetCDF file (MINC 1)", NIBABEL),
    (0, b"!INTERFILE", "an Interfile header", SIMPLE_ITK),
    (0, b"\x00\x00\x00\x01\x00\x00", "a FreeSurfer volume (MGH)", NIBABEL),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"\x93NUMPY", "a NumPy array, which has no spacing and no orientation", "save it as NIfTI"),
    (0, b"\x89PNG", "a PNG picture", PICTURE),
    (0, b"\xff\xd8\xff", "a JPEG picture", PICTURE),
    (0, b"II*\x00", "a TIFF picture", PICTURE),
    (0, b"MM\x00*", "a TIFF picture", PICTURE),
)
SUFFIXES = (
    ((".nrrd", ".nhdr"), "an NRRD volume", SIMPLE_ITK),
    ((".mha", ".mhd"), "a MetaImage volume (MHA, MHD)", SIMPLE_ITK),
    ((".dcm", ".ima"), "a DICOM file", DICOM),
    ((".mgh", ".mgz"), "a FreeSurfer volume (MGH)", NIBABEL),
    ((".mnc",), "a MINC volume", NIBABEL),
)
SINGLE, PAIR = (b"n+1\x00", b"n+2\x00"), (b"ni1\x00", b"ni2\x00")
GZIP = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
FILES_LOOKED_AT = 50


def header_path(path: Path) -> Path:
    """The file that holds the header: `path`, or its `.hdr` if it is the `.img` of a pair."""
    for data, header in ((".img", ".hdr"), (".img.gz", ".hdr.gz")):
        if path.name.endswith(data):
            return path.with_name(path.name.removesuffix(data) + header)
    return path


def data_path(path: Path) -> Path:
    """The file that holds the voxels: `path`, or its `.img` if it is the `.hdr` of a pair."""
    for header, data in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        if path.name.endswith(header):
            return path.with_name(path.name.removesuffix(header) + data)
    return path


def require_nifti(path: Path) -> None:
    """Raise InputError, with the format that was seen, unless `path` is a NIfTI file or the `.hdr`
    or `.img` of a NIfTI pair."""
    if os.path.isdir(path):  # of `os`, which answers for names that are too long
        _refuse_folder(path)
    require_file(path)
    header = header_path(path)
    if not header.is_file():
        raise InputError(f"{path}: its header {header.name} is missing; both belong together")
    with header.open("rb") as file:
        packed = file.read(2) == GZIP
    if packed and not header.name.endswith(".gz"):
        _refuse_known(path, first_bytes(header, HEADER_BYTES))
        raise InputError(f"{path} is compressed by gzip; rename it so that it ends in .gz")
    if not packed and header.name.endswith(".gz") and header.stat().st_size:
        _refuse_known(path, first_bytes(header, HEADER_BYTES))
        raise InputError(f"{path}: not a readable NIfTI volume (not compressed, but named .gz)")
    start = first_bytes(header, HEADER_BYTES)
    magic = nifti_magic(start)
    if magic is None:
        _refuse(path, start)
    data = data_path(path)
    if not data.is_file():
        raise InputError(f"{path}: its voxels {data.name} are missing; both belong together")
    paired = path.name.endswith((".img", ".hdr", ".img.gz", ".hdr.gz"))
    if (magic in PAIR) is not paired:
        kind = "the header of a .hdr/.img pair" if magic in PAIR else "a single .nii file"
        raise InputError(
            f"{path}: by its header it is {kind}, by its name it is not; where its voxels begin is "
            "in doubt. Convert it anew"
        )


def nifti_magic(start: bytes) -> bytes | None:
    """The four bytes by which NIfTI is known, or None."""
    for magic in (start[344:348], start[4:8]):
        if magic in (*SINGLE, *PAIR):
            return magic
    return None


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, of its content if it is compressed by gzip."""
    with path.open("rb") as file:
        start = file.read(count)
    if start[:2] == GZIP:
        try:
            with gzip.open(path) as packed:
                return packed.read(count)
        except (OSError, EOFError, zlib.error):
            return start
    return start


def _refuse_known(path: Path, start: bytes) -> None:
    for offset, signature, name, remedy in SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            raise InputError(f"{path} is {name}, which is not read here; {remedy}")


def _refuse(path: Path, start: bytes) -> None:
    _refuse_known(path, start)
    for suffixes, name, remedy in SUFFIXES:
        if path.name.lower().endswith((*suffixes, *(f"{suffix}.gz" for suffix in suffixes))):
            raise InputError(f"{path} is named like {name}, which is not read here; {remedy}")
    if len(start) < 348:
        raise InputError(f"{path}: not a readable NIfTI volume (empty, or cut short)")
    if int.from_bytes(start[:4], "little") == 348 or int.from_bytes(start[:4], "big") == 348:
        raise InputError(
            f"{path} is an Analyze 7.5 volume, which does not say where left and right are; "
            "convert it to NIfTI where its orientation is known"
        )
    raise InputError(f"{path}: not a readable NIfTI volume, and no format that is known here")


def _refuse_folder(path: Path) -> None:
    files = [file for _, file in zip(range(FILES_LOOKED_AT), path.rglob("*"), strict=False)]
    for file in files:
        if file.is_file() and (file.name == "DICOMDIR" or first_bytes(file, 132)[128:] == b"DICM"):
            raise InputError(
                f"{path} is a folder of DICOM files, which is not read here; make one NIfTI file "
                "of the series with dcm2niix"
            )
    raise InputError(f"{path} is a folder, not a file")
