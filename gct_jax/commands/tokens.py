"""`tokens encode` and `tokens decode`: CT-ViT alone, from a CT to token ids and back.

The file of ids is an `.npz` with

    ids               int32 [t, h, w]
    grid_shape        (depth, height, width) of the volume that CT-ViT saw
    grid_spacing_mm   its spacing; its centre and axis directions are those of the CT
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
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gct_jax.commands.ct_options import add_ct_options, read_ct
from gct_jax.config import ModelConfig, to_dict
from gct_jax.errors import InputError, ModelFolderError
from gct_jax.runtime.files import replace_when_done, require_file
from gct_jax.runtime.stopping import deferred

if TYPE_CHECKING:
    from gct_jax.model_folder import Model

MOST_SLICES = 4096
LEAST_COVERED = 0.6  # of the depth that the model sees, without a note
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
        description="Resamples a whole CT to the model's grid and writes its token ids.",
    )
    encode.add_argument("ct", type=Path, help="CT in Hounsfield units, .nii, .nii.gz or .hdr/.img")
    encode.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    encode.add_argument("--model", type=Path, help="model folder (the demo model)")
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
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")
    ct = read_ct(arguments.ct, arguments)
    model = open_model(arguments.model)

    import jax

    from gct_jax.parts import build_part
    from gct_jax.volumes.intensity import to_unit
    from gct_jax.volumes.resample import resample

    ctvit = build_part(model.config, "ctvit")
    shape: Shape = ct.volume_hu.shape
    grid_shape, grid_spacing_mm = covering_grid(model.config, shape, ct.spacing_mm)
    covered = shape[0] * ct.spacing_mm[0] / (grid_shape[0] * grid_spacing_mm[0])
    if covered < LEAST_COVERED:
        print(
            f"gct: note: {arguments.ct}: the CT fills {100 * covered:.0f} % of the depth of "
            f"{grid_shape[0]} slices that the model needs; the rest is air, and what is decoded "
            "may be far off",
            file=sys.stderr,
        )
    volume_hu = resample(ct.volume_hu, ct.spacing_mm, grid_shape, grid_spacing_mm)
    volume = to_unit(volume_hu)[None, ..., None]  # [batch, depth, height, width, channel]
    encode = jax.jit(lambda variables, x: ctvit.apply(variables, x, method=ctvit.encode))
    ids = np.asarray(encode(model.variables("ctvit"), volume)[0], np.int32)
    write_encoded(
        arguments.out,
        EncodedCT(
            ids,
            grid_shape,
            grid_spacing_mm,
            shape,
            ct.affine,
            ct.stored_axes,
            ct.stored_order,
            ct.form_code,
            json.dumps(
                {"file": arguments.ct.name, "placement": ct.form, "notes": ct.notes},
            ),
            tokenizer_sha256(model),
        ),
    )
    print(
        f"{arguments.out}: {by(ids.shape)} ids from {by(shape)} voxels of {by(ct.spacing_mm)} mm, "
        f"seen as {by(grid_shape)} of {by(grid_spacing_mm)} mm"
    )


def run_decode(arguments: argparse.Namespace) -> None:
    """Decode one file of ids.

    Raises:
      GctError: bad input, or a model other than the one that encoded; nothing was written.
    """
    require_suffix(arguments.out, ".nii", ".nii.gz")
    encoded = read_encoded(arguments.ids)
    with deferred():
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")
    model = open_model(arguments.model)

    import jax

    from gct_jax.parts import build_part
    from gct_jax.volumes.grid import affine_spacing, regrid_affine
    from gct_jax.volumes.intensity import from_unit
    from gct_jax.volumes.nifti import write_placed_volume
    from gct_jax.volumes.resample import resample

    ctvit = build_part(model.config, "ctvit")
    require_same_tokenizer(arguments.ids, encoded, model)
    require_ids(arguments.ids, encoded, model.config)
    decode = jax.jit(lambda variables, ids: ctvit.apply(variables, ids, method=ctvit.decode))
    volume_hu = from_unit(decode(model.variables("ctvit"), encoded.ids[None])[0, ..., 0])
    affine, spacing_mm = encoded.affine, affine_spacing(encoded.affine)
    # Readers give a file without orientation the axes they like, so it keeps those it came in.
    order = None if arguments.model_grid and encoded.form_code else encoded.stored_order
    if arguments.model_grid:
        spacing_mm = encoded.grid_spacing_mm
        affine = regrid_affine(affine, encoded.shape, encoded.grid_shape, spacing_mm)
    else:
        volume_hu = resample(volume_hu, encoded.grid_spacing_mm, encoded.shape, spacing_mm)
    unstated = "" if encoded.form_code else ", orientation not stated"
    write_placed_volume(
        arguments.out,
        np.asarray(volume_hu),
        affine,
        order,
        encoded.form_code,
        description=f"decoded by gct_jax{unstated}",
    )
    print(f"{arguments.out}: {by(volume_hu.shape)} voxels of {by(spacing_mm)} mm{unstated}")


def covering_grid(config: ModelConfig, shape: Shape, spacing_mm: Spacing) -> tuple[Shape, Spacing]:
    """The model's grid, made large enough for a CT: its shape and spacing.

    Slices keep the model's spacing; there are as many as the CT is long, rounded up to a count
    that CT-ViT's patches tile. Pixels keep the model's spacing too, with air around a small CT,
    unless the CT is wider than the model's field; then they grow until it fits.

    Args:
      config: the model; needs a ctvit.
      shape: (depth, height, width) of the CT.
      spacing_mm: its spacing along the same axes.

    Raises:
      InputError: the CT is longer than `MOST_SLICES` slices.
    """
    assert config.ctvit  # build_part has looked
    grid, patch = config.volume, config.ctvit.temporal_patch_size
    depth_mm, height_mm, width_mm = np.multiply(shape, spacing_mm).tolist()
    # 1e-6: a field of exactly the model's length shall not gain slices by rounding
    slices = math.ceil(depth_mm / grid.slice_spacing_mm - 1e-6)
    slices = 1 + math.ceil((slices - 1) / patch) * patch
    if slices > MOST_SLICES:
        raise InputError(
            f"the CT is {depth_mm:,.0f} mm long, which asks for {slices:,} slices of "
            f"{grid.slice_spacing_mm:g} mm, more than {MOST_SLICES:,}; cut it, or state --spacing"
        )
    pixel_mm = max(grid.pixel_spacing_mm, max(height_mm, width_mm) / grid.image_size)
    return (slices, grid.image_size, grid.image_size), (grid.slice_spacing_mm, pixel_mm, pixel_mm)


def open_model(folder: Path | None) -> "Model":
    """The model in `folder`, by default the demo model."""
    from gct_jax.model_folder import demo_folder, load_model

    return load_model(folder or demo_folder())


def tokenizer_sha256(model: "Model") -> str:
    """Hash of CT-ViT's configuration and weights; other parts of a model may change freely."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config.ctvit), sort_keys=True).encode())
    with (model.folder / "ctvit.safetensors").open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def require_same_tokenizer(path: Path, encoded: EncodedCT, model: "Model") -> None:
    """Raise ModelFolderError unless `model` holds the CT-ViT that made the ids."""
    own = tokenizer_sha256(model)
    if encoded.tokenizer_sha256 != own:
        raise ModelFolderError(
            f"{path} was encoded by another CT-ViT ({encoded.tokenizer_sha256[:12]}...) than the "
            f"one in {model.folder} ({own[:12]}...); give the model it was encoded with by --model"
        )


def require_ids(path: Path, encoded: EncodedCT, config: ModelConfig) -> None:
    """Raise InputError unless the ids are those of a volume of the recorded grid."""
    from gct_jax.models.ctvit import token_grid

    assert config.ctvit  # build_part has looked
    ctvit, ids = config.ctvit, encoded.ids
    try:
        expected = token_grid(
            *encoded.grid_shape,
            patch_size=ctvit.patch_size,
            temporal_patch_size=ctvit.temporal_patch_size,
        )
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if ids.shape != expected:
        raise InputError(
            f"{path} is damaged: {by(ids.shape)} ids for a grid of {by(encoded.grid_shape)}, which "
            f"has {by(expected)}"
        )
    if ids.min() < 0 or ids.max() >= ctvit.codebook_size:
        raise InputError(
            f"{path} is damaged: ids from {ids.min()} to {ids.max()}, the codebook has "
            f"0 to {ctvit.codebook_size - 1}"
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
        and 0 <= encoded.form_code <= 5
    )


def by(values: tuple) -> str:
    """For people: (9.0, 5.625) as "9 x 5.62"."""
    return " x ".join(
        f"{value:.3g}" if isinstance(value, float) else str(value) for value in values
    )
