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

from gct_jax.components import present_components
from gct_jax.config import to_dict
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.files import ReferenceFile, reference_tensors
from gct_jax.interop.generatect.layout import without_prefix
from gct_jax.interop.generatect.unet import require_reference_unet
from gct_jax.interop.weight_files import read_safetensors, write_safetensors
from gct_jax.model_folder import Model

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
    """Write a network that is no component of a model folder, a codebook or a critic without its
    MaskGIT, as `<kind>.safetensors`: our variables by path, and their configuration as JSON in the
    metadata."""
    (component,) = file.prefixes
    flat = flatten_dict(jax.device_get(file.variables[component]), sep=".")
    config = file.config[component]
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
    sources = {component for file in files for component in file.prefixes}
    present = {name for name in present_components(model.config) if name in PREFIXES}
    if not present and not files:
        raise ModelFolderError(f"model folder {model.folder} has none of the reference's networks")
    kinds = sorted(present - sources)
    own_file = any(file.kind in ("token_critic", "self_critic") for file in files)
    with_critic = model.config.critic is not None and not own_file
    if "maskgit" in kinds and "ctvit" in present:
        kinds[kinds.index("maskgit")] = "transformer"
    elif "maskgit" in kinds and with_critic:
        raise ModelFolderError(
            f"model folder {model.folder} has a critic and no CT-ViT; the reference stores a "
            "critic in the transformer's file, which needs both"
        )
    files += [_new_file(kind, with_critic) for kind in kinds]
    if model.config.superres is not None:
        require_reference_unet(model.config.superres)
    return [
        dataclasses.replace(
            file,
            config={component: getattr(model.config, component) for component in file.prefixes},
            variables={component: model.variables(component) for component in file.prefixes},
        )
        for file in files
    ]


def plain_tensors(file: ReferenceFile) -> dict[str, np.ndarray]:
    """The state dict of the reference's module of this kind, without a trainer's additions."""
    if file.structure is None:
        return reference_tensors(file)
    plain = _new_file(file.kind, "critic" in file.prefixes)
    kept = {
        plain.prefixes[component] + name: value
        for component, prefix in file.prefixes.items()
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


def _new_file(kind: str, with_critic: bool) -> ReferenceFile:
    # The first of the two cascaded U-Nets is an empty one with a single number.
    beside = {"unets.0.dummy_parameter": np.zeros(1, np.float32)} if kind == "superres" else {}
    critic = {"critic": "critic."} if kind == "transformer" and with_critic else {}
    return ReferenceFile(kind, {}, {}, PREFIXES[kind] | critic, beside)
