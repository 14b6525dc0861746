"""A folder of CTs in which everything that can be wrong is wrong, each kind once."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from chest_ct import SPACING_MM, affine, chest, save

HEADER = "path,report,patient,age,sex\n"

# name of the file -> a part of the reason it is rejected for; None: it is read, and why noted.
REJECTED = {
    "truncated.nii.gz": "not a readable NIfTI",
    "wrong_magic.nii.gz": "Analyze",
    "text.nii": "not a readable NIfTI",
    "two_dimensions.nii.gz": "not one 3-D volume",
    "four_dimensions.nii.gz": "not one 3-D volume",
    "rgb.nii.gz": "not a CT",
    "zero_spacing.nii.gz": "not positive",
    "singular.nii.gz": "not positive",
    "forms_disagree.nii.gz": "disagree",
    "nan.nii.gz": "NaN or infinite",
    "infinite.nii.gz": "NaN or infinite",
    "constant.nii.gz": "all voxels are equal",
    "unsigned.nii.gz": "unsigned",
    "rescaled_twice.nii.gz": "applied twice",
    "not_rescaled.nii.gz": "intercept left out",
    "unit_range.nii.gz": "unit range",
    "head.nii.gz": "no chest",
    "micrometres.nii.gz": "no chest CT is",
    "../outside.nii.gz": "'..'",
    "/etc/hostname": "absolute",
    "missing.nii.gz": "No such file",
    "twice.nii.gz": "say different things",
    "latin1.nii.gz": "not UTF-8",
    "cells.nii.gz": "cells",
    "unlisted.nii.gz": "not in the table",
}
NOTED = {
    "sheared.nii.gz": "sheared",
    "padded.nii.gz": None,
    "oblique.nii.gz": "off the patient's",
    "flipped.nii.gz": None,
    "float.nii.gz": None,
    "link.nii.gz": "link leads out",
    "odd_age.nii.gz": "age cannot be read",
    "unicode.nii.gz": None,
}


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = affine()
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix[:3, :3]
    return matrix


def _header(path: Path, **fields) -> None:
    save(path)
    image = nib.load(path)
    header, data = image.header.copy(), np.asarray(image.dataobj)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    assert data.size
    path.write_bytes(gzip.compress(bytes(raw)))


def make(root: Path) -> Path:
    """Write the folder and its table beside it; returns the table."""
    volume = chest()
    head = np.where(volume < -500, -1000, 40).astype(np.float32)
    head[volume > -500] = 40
    head[:, 24:40, 12:50] = 40
    head[(np.indices(volume.shape)[0] > 30) & (volume > -500)] = 40
    save(root / "good.nii.gz", seeded(1))
    save(root / "truncated.nii.gz")
    whole = (root / "truncated.nii.gz").read_bytes()
    (root / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "wrong_magic.nii.gz").write_bytes(gzip.compress(b"\x5c\x01\0\0" + bytes(5000)))
    (root / "text.nii").write_text("this is no volume" * 40)
    for name, shape in (("two_dimensions", (64, 64)), ("four_dimensions", (8, 8, 8, 3))):
        nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), root / f"{name}.nii.gz")
    colour = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), root / "rgb.nii.gz")
    _header(root / "zero_spacing.nii.gz", pixdim=[1, 0, 6, 8, 0, 0, 0, 0], sform_code=0)
    _header(root / "singular.nii.gz", srow_y=[6.0, 0, 0, 0], qform_code=0)
    _header(root / "forms_disagree.nii.gz", srow_x=[-6.0, 0, 0, 189])
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        bad = volume.copy()
        bad[3, 3, 3] = value
        save(root / f"{name}.nii.gz", bad, np.float32)
    save(root / "constant.nii.gz", np.full_like(volume, -1000))
    save(root / "unsigned.nii.gz", volume.astype(np.int16).view(np.uint16), np.uint16)
    save(root / "rescaled_twice.nii.gz", volume - 1024)
    save(root / "not_rescaled.nii.gz", volume + 1024)
    save(root / "unit_range.nii.gz", volume / 4000, np.float32)
    save(root / "head.nii.gz", np.where(volume < -900, -1000, 40) + 0 * head)
    fill_lungs(root / "head.nii.gz", volume)
    save(root / "micrometres.nii.gz", spacing_mm=tuple(1000 * x for x in SPACING_MM))
    sheared = affine()
    sheared[0, 2] = 2.0
    save(root / "sheared.nii.gz", seeded(2), matrix=sheared)
    padded = seeded(3)
    padded[:, :3] = -8192
    save(root / "padded.nii.gz", padded)
    save(root / "oblique.nii.gz", seeded(4), matrix=turned(30))
    flipped = affine() @ np.diag([-1.0, -1, 1, 1])
    save(root / "flipped.nii.gz", seeded(5), matrix=flipped)
    save(root / "float.nii.gz", seeded(6), np.float64)
    save(root.parent / "elsewhere" / "link.nii.gz", seeded(7))
    os.symlink(root.parent / "elsewhere" / "link.nii.gz", root / "link.nii.gz")
    os.symlink(root, root / "loop")
    for name in ("odd_age", "unicode", "twice", "latin1", "cells", "unlisted"):
        save(root / f"{name}.nii.gz", seeded(len(name) + 10))
    save(root / "copy.nii.gz", seeded(1))
    (root / "notes.txt").write_text("x")
    (root / "picture.png").write_bytes(b"\x89PNG")
    rows = [f"{name},Normal chest.,p{i},40,F\n" for i, name in enumerate(
        sorted({*REJECTED, *NOTED} - {"latin1.nii.gz", "cells.nii.gz", "unlisted.nii.gz",
                                      "odd_age.nii.gz", "unicode.nii.gz"}))]  # fmt: skip
    table = (HEADER + "".join(rows)).encode()
    table += b"good.nii.gz,Normal chest.,good,40,F\ncopy.nii.gz,Normal chest.,other,40,F\n"
    table += b"twice.nii.gz,Pneumonia.,p9,40,F\nodd_age.nii.gz,Normal.,pa,4000Y,F\n"
    table += b"latin1.nii.gz,Ergu\xdf links.,pl,40,F\ncells.nii.gz,Normal.,pc\n"
    table += 'unicode.nii.gz,"Erguß\u2028 links,\n<script>alert(1)</script> 肺.",pu,7M,O\n'.encode()
    path = root.parent / "reports.csv"
    path.write_bytes(table)
    return path


def fill_lungs(path: Path, volume: np.ndarray) -> None:
    """A body without air inside it."""
    filled = volume.copy()
    for image, own in zip(filled, volume, strict=True):
        inside = own > -500
        for row in np.flatnonzero(inside.any(1)):
            columns = np.flatnonzero(inside[row])
            image[row, columns[0] : columns[-1]] = np.maximum(
                image[row, columns[0] : columns[-1]], 30
            )
    save(path, filled)


def seeded(seed: int) -> np.ndarray:
    return chest(seed=seed)
