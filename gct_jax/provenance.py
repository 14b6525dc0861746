"""Which networks belong together, by the hashes of their contents.

MaskGIT predicts the ids of one CT-ViT from the embeddings of one T5, which reads the ids of one
vocabulary; with any other they mean nothing, and no size would tell. So whatever trains or joins
networks notes the identity of each and of those it was trained with:

    provenance.json  {"components": {NAME: {"identity": .., "file_sha256": .., "trained_with": {}}}}

lies in every model folder (`file_sha256` of the component's weight file as it was stored, perhaps
in 16 bits, while the identity is that of the trained weights), and in a run's folder for what it
was given.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from gct_jax.errors import ModelFolderError

FILE_NAME = "provenance.json"
TOKENIZER = "tokenizer"
SHOWN_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Identities of networks ("ctvit", "maskgit", ...) and of the vocabulary ("tokenizer"), and for
    each network the identities that it was trained with. What is not known is absent."""

    identities: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_with: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def joined(self, later: "Provenance") -> "Provenance":
        """Both, the later one where both know a network."""
        return Provenance(
            {**self.identities, **later.identities}, {**self.trained_with, **later.trained_with}
        )

    def mismatches(self) -> list[str]:
        """A sentence for each network that was trained with another one than is present."""
        return [
            f"{name} was trained with another {other} ({expected[:SHOWN_DIGITS]}...) than this one "
            f"({self.identities[other][:SHOWN_DIGITS]}...)"
            for name, inputs in self.trained_with.items()
            for other, expected in inputs.items()
            if name in self.identities and self.identities.get(other, expected) != expected
        ]


def require_fit(provenance: Provenance, where: str) -> None:
    """Raise ModelFolderError if two networks do not belong together."""
    mismatches = provenance.mismatches()
    if mismatches:
        raise ModelFolderError(f"{where}: {mismatches[0]}; give those that were trained together")


def identity(variables: PyTree) -> str:
    """Hash of the names, shapes and float32 values of a tree of arrays."""
    digest = hashlib.sha256()
    flat = flatten_dict(jax.device_get(dict(variables)), sep=".")
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name], np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def bytes_identity(content: bytes) -> str:
    """Hash of a vocabulary's file."""
    return hashlib.sha256(content).hexdigest()


def file_identity(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_provenance(
    folder: Path, provenance: Provenance, file_hashes: Mapping[str, str] | None = None
) -> None:
    """Write `folder/provenance.json`.

    file_hashes: of the weight file of each component, in a model folder.
    """
    components = {
        component: {
            "identity": found,
            "file_sha256": (file_hashes or {}).get(component),
            "trained_with": dict(provenance.trained_with.get(component, {})),
        }
        for component, found in provenance.identities.items()
    }
    text = json.dumps({"components": components}, indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> tuple[Provenance, dict[str, str]]:
    """What `folder/provenance.json` says, nothing if there is none, and the hashes of files.

    Raises:
      ModelFolderError: it is damaged.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        components = document["components" if "components" in document else "parts"]  # of old
        provenance = Provenance(
            {component: str(entry["identity"]) for component, entry in components.items()},
            {
                component: dict(e["trained_with"])
                for component, e in components.items()
                if e["trained_with"]
            },
        )
        hashes = {p: str(e["file_sha256"]) for p, e in components.items() if e["file_sha256"]}
    except FileNotFoundError:
        return Provenance(), {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{path} is damaged: {error!r}") from None
    return provenance, hashes


def require_same_file(path: Path, expected: str | None) -> None:
    """Raise ModelFolderError if a weight file is not the one that its folder was written with."""
    if expected is not None and file_identity(path) != expected:
        raise ModelFolderError(
            f"{path} is not the file that its folder was written with ({FILE_NAME}): changed, "
            f"damaged or of another model. If it was changed on purpose, delete {FILE_NAME}"
        )
