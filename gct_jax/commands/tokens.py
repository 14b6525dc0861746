"""`tokens encode` and `tokens decode`: CT-ViT alone, from a CT to token ids and back.

The file of ids is an `.npz` with

    ids               int32 [t, h, w]
    grid_shape        (depth, height, width) of the volume that CT-ViT saw
    grid_spacing_mm   its spacing; its axis directions are those of the CT
    grid_centre_mm    RAS+ millimetres of its middle
    shape             (depth, height, width) of the CT itself
    affine            [4, 4] from those indices to RAS+ millimetres
    stored_axes       directions of the three axes in the CT's file, e.g. "LAS"
    stored_order      int [3, 2], which axis of the file each axis is, and 1 or -1 for its direction
    form_code         NIfTI's code of the placement that was used; 0: the file states none
    metadata          JSON: name of the file, the placement that was used, notes on what was not
                      read as it stands
    tokenizer_sha256  which CT-ViT gives the ids their meaning
"""

import argparse
import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gct_jax.commands.ct_options import add_ct_options, read_ct
from gct_jax.config import module_fields
from gct_jax.errors import InputError, ModelFolderError
from gct_jax.notes import tell
from gct_jax.runtime.files import replace_when_done, require_file
from gct_jax.runtime.stopping import deferred
from gct_jax.volumes.grid import by

if TYPE_CHECKING:
    from gct_jax.model_folder import Model

LARGEST_SIDE = 2**14
UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    zipfile.BadZipFile,
)
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


class EncodedCT(NamedTuple):
    """Content of a file of ids; see the module's first lines."""

    ids: np.ndarray
    grid_shape: Shape
    grid_spacing_mm: Spacing
    grid_centre_mm: np.ndarray
    shape: Shape
    affine: np.ndarray
    stored_axes: str
    stored_order: np.ndarray
    form_code: int
    metadata: str
    tokenizer_sha256: str


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("tokens", help="a CT to token ids and back, CT-ViT alone")
    actions = parser.add_subparsers(required=True, metavar="encode|decode")

    encode = actions.add_parser(
        "encode",
        help="CT to token ids",
        description="Resamples a CT to the model's grid and writes its token ids.",
    )
    encode.add_argument("ct", type=Path, help="CT in Hounsfield units, .nii, .nii.gz or .hdr/.img")
    encode.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    encode.add_argument("--model", type=Path, help="model folder (the demo model)")
    encode.add_argument(
        "--field",
        choices=("body", "whole"),
        default="body",
        help="body (default): what the model was trained to see, its pixels about the body, all "
        "slices; whole: all of the CT, with larger pixels where it is wider than the model's field",
    )
    add_ct_options(encode)
    encode.set_defaults(run=run_encode)

    decode = actions.add_parser(
        "decode",
        help="token ids to CT",
        description="Writes the CT that the token ids stand for, as int16 HU.",
    )
    decode.add_argument("ids", type=Path, help="file written by encode")
    decode.add_argument("--out", type=Path, required=True, metavar="FILE.nii.gz")
    decode.add_argument("--model", type=Path, help="the model that encoded (the demo model)")
    decode.add_argument(
        "--model-grid",
        action="store_true",
        help="keep the model's grid, in RAS order; otherwise voxels lie as in the encoded CT",
    )
    decode.set_defaults(run=run_decode)


def run_encode(arguments: argparse.Namespace) -> None:
    """Encode one CT.

    Raises:
      GctError: bad input; nothing was written.
    """
    require_suffix(arguments.out, ".npz")
    with deferred():
        from gct_jax import encode, load_model
        from gct_jax.reconstruction import encoding_grid
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")
    ct = read_ct(arguments.ct, arguments)
    model = load_model(arguments.model)
    grid = encoding_grid(
        model.config, ct, arguments.field, lambda text: tell(f"{arguments.ct}: {text}")
    )
    ids = encode(model, ct, grid)
    assert ct.stored_order is not None  # it was read from a file
    write_encoded(
        arguments.out,
        EncodedCT(
            ids,
            grid.shape,
            grid.spacing_mm,
            grid.centre_mm,
            ct.grid.shape,
            ct.affine,
            ct.metadata["stored_axes"],
            ct.stored_order,
            ct.form_code,
            json.dumps(ct.metadata),
            codec_sha256(model),
        ),
    )
    print(
        f"{arguments.out}: {by(ids.shape)} ids from {by(ct.grid.shape)} voxels of "
        f"{by(ct.spacing_mm)} mm, seen as {by(grid.shape)} of {by(grid.spacing_mm)} mm"
    )


def run_decode(arguments: argparse.Namespace) -> None:
    """Decode one file of ids.

    Raises:
      GctError: bad input, or a model other than the one that encoded; nothing was written.
    """
    require_suffix(arguments.out, ".nii", ".nii.gz")
    encoded = read_encoded(arguments.ids)
    with deferred():
        from gct_jax import decode, load_model
        from gct_jax.runtime.numerics import prepare_jax
        from gct_jax.volumes.grid import Grid
        from gct_jax.volumes.nifti import write_placed_volume

    prepare_jax("gct")
    model = load_model(arguments.model)
    require_same_tokenizer(arguments.ids, encoded, model)
    own = Grid(encoded.shape, encoded.affine)
    grid = own.regrid(encoded.grid_shape, encoded.grid_spacing_mm, encoded.grid_centre_mm)
    try:
        ct = decode(model, encoded.ids, grid)
    except InputError as error:
        raise InputError(f"{arguments.ids} is damaged: {error}") from None
    # Readers give a file without orientation the axes they like, so it keeps those it came in.
    order = None if arguments.model_grid and encoded.form_code else encoded.stored_order
    if not arguments.model_grid:
        ct = ct.resampled(own)
    unstated = "" if encoded.form_code else ", orientation not stated"
    write_placed_volume(
        arguments.out,
        ct.volume_hu,
        ct.affine,
        order,
        encoded.form_code,
        description=f"decoded by gct_jax{unstated}",
    )
    print(f"{arguments.out}: {by(ct.grid.shape)} voxels of {by(ct.spacing_mm)} mm{unstated}")


def codec_sha256(model: "Model") -> str:
    """Hash of CT-ViT's configuration and weights; other components of a model may change freely.

    Raises:
      ModelFolderError: the model has no CT-ViT.
    """
    from gct_jax.components import require_component

    require_component(model.config, "ctvit")
    digest = hashlib.sha256(json.dumps(module_fields(model.config.ctvit), sort_keys=True).encode())
    with (model.folder / "ctvit.safetensors").open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def require_same_tokenizer(path: Path, encoded: EncodedCT, model: "Model") -> None:
    """Raise ModelFolderError unless `model` holds the CT-ViT that made the ids."""
    own = codec_sha256(model)
    if encoded.tokenizer_sha256 != own:
        raise ModelFolderError(
            f"{path} was encoded by another CT-ViT ({encoded.tokenizer_sha256[:12]}...) than the "
            f"one in {model.folder} ({own[:12]}...); give the model it was encoded with by --model"
        )


def require_suffix(path: Path, *suffixes: str) -> None:
    """Raise InputError unless the file name ends in one of `suffixes`."""
    if not path.name.endswith(suffixes):
        raise InputError(f"--out {path} must end in {' or '.join(suffixes)}")


def write_encoded(path: Path, encoded: EncodedCT) -> None:
    """Write a file of ids, whole or not at all."""
    arrays: dict[str, Any] = encoded._asdict()
    with replace_when_done(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_encoded(path: Path) -> EncodedCT:
    """Read a file of ids.

    Raises:
      InputError: the file is missing, damaged or was not written by `tokens encode`.
    """
    require_file(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in EncodedCT._fields}
        encoded = EncodedCT(
            ids=arrays["ids"],
            grid_shape=tuple(arrays["grid_shape"].tolist()),
            grid_spacing_mm=tuple(arrays["grid_spacing_mm"].tolist()),
            grid_centre_mm=arrays["grid_centre_mm"],
            shape=tuple(arrays["shape"].tolist()),
            affine=arrays["affine"],
            stored_axes=str(arrays["stored_axes"]),
            stored_order=arrays["stored_order"],
            form_code=int(arrays["form_code"]),
            metadata=str(arrays["metadata"]),
            tokenizer_sha256=str(arrays["tokenizer_sha256"]),
        )
    except UNREADABLE as error:
        raise InputError(
            f"{path} was not written by `tokens encode` of this version, or is damaged"
        ) from error
    if not _plausible(encoded):
        raise InputError(
            f"{path} was not written by `tokens encode`, or is damaged: its arrays are of other "
            "kinds or hold impossible sizes"
        )
    return encoded


def _plausible(encoded: EncodedCT) -> bool:
    order, spacing = encoded.stored_order, encoded.grid_spacing_mm
    kinds = [array.dtype.kind for array in (encoded.ids, order, encoded.affine)]
    if kinds != ["i", "i", "f"] or encoded.ids.dtype != np.int32 or encoded.ids.ndim != 3:
        return False
    if encoded.affine.shape != (4, 4) or order.shape != (3, 2) or len(spacing) != 3:
        return False
    sides = (*encoded.shape, *encoded.grid_shape)
    return (
        len(sides) == 6
        and all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides)
        and all(isinstance(mm, float) and 0 < mm < math.inf for mm in spacing)
        and sorted(order[:, 0].tolist()) == [0, 1, 2]
        and set(order[:, 1].tolist()) <= {-1, 1}
        and bool(np.isfinite(encoded.affine).all())
        and encoded.grid_centre_mm.shape == (3,)
        and bool(np.isfinite(encoded.grid_centre_mm).all())
        and 0 <= encoded.form_code <= 5
    )
