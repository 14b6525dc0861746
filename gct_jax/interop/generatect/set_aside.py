"""`set_aside.safetensors` of a converted model folder: what the model itself does not use.

Tensor names are "<kind of file>/<name in it>". The metadata holds, per kind, the prefixes of the
networks and the structure of the file as JSON.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gct_jax.config import to_dict
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.files import ReferenceFile, reference_tensors
from gct_jax.interop.generatect.layout import without_prefix
from gct_jax.interop.generatect.unet import require_reference_unet
from gct_jax.interop.weight_files import read_safetensors, write_safetensors
from gct_jax.model_folder import Model
from gct_jax.parts import CONFIG_FIELD, has_part

FILE_NAME = "set_aside.safetensors"
# Where the networks lie in each kind of state dict.
PREFIXES = {
    "ctvit": {"ctvit": ""},
    "transformer": {"ctvit": "ctvit.", "maskgit": "maskgit."},
    "maskgit": {"maskgit": ""},
    "superres": {"superres": "unets.1."},
}


def write_set_aside(folder: Path, files: Iterable[ReferenceFile]) -> None:
    """Write what remains of `files` when their networks are taken out."""
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors |= {f"{file.kind}/{name}": value for name, value in file.set_aside.items()}
        metadata[file.kind] = json.dumps(
            {"prefixes": file.prefixes, "structure": file.structure}, separators=(",", ":")
        )
    write_safetensors(folder / FILE_NAME, tensors, metadata)


def write_beside(folder: Path, file: ReferenceFile) -> None:
    """Write a network that is no part of a model folder, a critic or a codebook, as
    `<kind>.safetensors`: our variables by path, and their configuration as JSON in the metadata."""
    (part,) = file.prefixes
    flat = flatten_dict(jax.device_get(file.variables[part]), sep=".")
    config = file.config[part]
    values = to_dict(config) if dataclasses.is_dataclass(config) else list(config)
    write_safetensors(
        folder / f"{file.kind}.safetensors", flat, {"config": json.dumps(values), "kind": file.kind}
    )


def read_set_aside(folder: Path) -> dict[str, ReferenceFile]:
    """Files by kind, without config and variables; none for a folder that was not converted.

    Raises:
      ModelFolderError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return {}
    tensors, metadata = read_safetensors(path)
    try:
        return {
            kind: ReferenceFile(
                kind,
                config={},
                variables={},
                set_aside=without_prefix(tensors, f"{kind}/"),
                **json.loads(text),
            )
            for kind, text in metadata.items()
        }
    except (ValueError, TypeError) as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from None


def reference_files(model: Model) -> list[ReferenceFile]:
    """The reference's files for the networks of a model folder.

    The files that the folder was converted from, as they were; for networks that came from none,
    files of the usual kinds, with the reference's initial values for what it stores besides.

    Raises:
      ModelFolderError: a file of the folder is damaged, or it has none of the reference's networks.
    """
    files = list(read_set_aside(model.folder).values())
    sources = {part for file in files for part in file.prefixes}
    present = {part for part in ("ctvit", "maskgit", "superres") if has_part(model.config, part)}
    if not present and not files:
        raise ModelFolderError(f"model folder {model.folder} has none of the reference's networks")
    kinds = sorted(present - sources)
    if "maskgit" in kinds and "ctvit" in present:
        kinds[kinds.index("maskgit")] = "transformer"
    files += [_new_file(kind) for kind in kinds]
    if model.config.unet is not None:
        require_reference_unet(model.config.unet)
    return [
        dataclasses.replace(
            file,
            config={part: getattr(model.config, CONFIG_FIELD[part]) for part in file.prefixes},
            variables={part: model.variables(part) for part in file.prefixes},
        )
        for file in files
    ]


def plain_tensors(file: ReferenceFile) -> dict[str, np.ndarray]:
    """The state dict of the reference's module of this kind, without a trainer's additions."""
    if file.structure is None:
        return reference_tensors(file)
    plain = _new_file(file.kind)
    kept = {
        plain.prefixes[part] + name: value
        for part, prefix in file.prefixes.items()
        for name, value in without_prefix(file.set_aside, prefix).items()
    }
    return reference_tensors(
        dataclasses.replace(
            plain,
            config=file.config,
            variables=file.variables,
            set_aside=plain.set_aside | kept,
        )
    )


def _new_file(kind: str) -> ReferenceFile:
    # The first of the two cascaded U-Nets is an empty one with a single number.
    beside = {"unets.0.dummy_parameter": np.zeros(1, np.float32)} if kind == "superres" else {}
    return ReferenceFile(kind, {}, {}, PREFIXES[kind], beside)
