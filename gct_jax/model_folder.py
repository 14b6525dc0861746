"""Read and write a model folder, the one unit in which models are passed around.

    config.json  ctvit.safetensors  maskgit.safetensors  critic.safetensors  superres.safetensors
    t5.safetensors  tokenizer.model  LICENSE  provenance.json

`provenance.json` says which weights the files hold and which were trained together
(`gct_jax.provenance`); in folders of earlier versions it is absent, and nothing is compared.

A component may be absent if `config.json` says so (null). Tensor names are the path in the
variables joined by dots: `params.encoder.layers_0.mlp.wo.kernel`, `codebook.quantizer.embedding`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gct_jax.components import (
    abstract_variables,
    check_components_fit,
    has_component,
    present_components,
)
from gct_jax.config import ModelConfig, from_dict, to_dict
from gct_jax.errors import ConfigError, ModelFolderError
from gct_jax.provenance import (
    TOKENIZER,
    Provenance,
    bytes_identity,
    file_identity,
    identity,
    read_provenance,
    require_fit,
    require_same_file,
    write_provenance,
)
from gct_jax.runtime.files import replace_files_when_done
from gct_jax.text import Tokenizer

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 has some fields under older names
NOTHING_KNOWN = Provenance()
WEIGHT_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def demo_folder() -> Path:
    """Folder of the model that ships with the package."""
    return Path(str(resources.files("gct_jax"))) / "assets" / "demo"


class Model:
    """An opened model folder; weights are read on first use and then kept."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        recorded: Provenance = NOTHING_KNOWN,
        file_hashes: Mapping[str, str] | None = None,
    ):
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self._recorded = recorded
        self._file_hashes = dict(file_hashes or {})
        self._variables: dict[str, dict[str, Any]] = {}

    def variables(self, component: str) -> dict[str, Any]:
        """Variables of a component as float32 arrays on the default device.

        Raises:
          ModelFolderError: the component is absent, or its file is damaged or not the one that the
            folder was written with.
        """
        if component not in self._variables:
            path = _weight_path(self.folder, self.config, component)
            require_same_file(path, self._file_hashes.get(component))
            with _open_weights(path) as file:
                flat = {
                    name: jnp.asarray(file.get_tensor(name).astype(np.float32))
                    for name in file.keys()  # noqa: SIM118 - an open file, not a dict
                }
            self._variables[component] = unflatten_dict(flat, sep=".")
        return self._variables[component]

    @cached_property
    def provenance(self) -> Provenance:
        """Identities of the networks and the vocabulary, recorded or else computed."""
        components = present_components(self.config)
        identities = {
            component: self._recorded.identities.get(component)
            or identity(self.variables(component))
            for component in components
        }
        if self.tokenizer is not None:
            identities[TOKENIZER] = bytes_identity(self.tokenizer.model_bytes)
        return Provenance(identities, self._recorded.trained_with)

    @cached_property
    def sha256(self) -> str:
        """Hash over the bytes of every file that decides what the model computes."""
        digest = hashlib.sha256()
        components = present_components(self.config)
        names = ["config.json", *(f"{component}.safetensors" for component in components)]
        names += ["tokenizer.model"] if self.tokenizer else []
        for name in names:
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def load_model(folder: str | Path | None = None) -> Model:
    """Open a model folder and check its config and the names and shapes of all tensors.

    Args:
      folder: None opens the demo model that ships with the package.

    Raises:
      ModelFolderError: a file is missing or damaged, a tensor is missing, left over or of another
        shape than the config asks for.
    """
    if not isinstance(folder, str | Path | None):
        raise ModelFolderError(f"a model folder is named by a path, not by {folder!r}")
    folder = demo_folder() if folder is None else Path(folder)
    if folder.is_file():
        raise ModelFolderError(f"{folder} is a file; a model is a folder")
    if not folder.is_dir():
        raise ModelFolderError(f"there is no model folder {folder}")
    config = _read_config(folder / "config.json")
    for component in present_components(config):
        _check_weights(_weight_path(folder, config, component), config, component)
    tokenizer = None
    if config.t5:
        path = folder / "tokenizer.model"
        tokenizer = Tokenizer.load(path)
        if tokenizer.size > config.t5.vocab_size:
            raise ModelFolderError(
                f"{path} has {tokenizer.size} pieces, t5.vocab_size is {config.t5.vocab_size}"
            )
    recorded, file_hashes = read_provenance(folder)
    if tokenizer is not None:
        own = Provenance({TOKENIZER: bytes_identity(tokenizer.model_bytes)})
        require_fit(recorded.joined(own), str(folder))
    require_fit(recorded, str(folder))
    return Model(folder, config, tokenizer, recorded, file_hashes)


def save_model(
    folder: str | Path,
    config: ModelConfig,
    variables: Mapping[str, Mapping[str, Any]],
    tokenizer_bytes: bytes | None = None,
    *,
    license_text: str,
    weight_dtype: str = "float32",
    provenance: Provenance = NOTHING_KNOWN,
) -> None:
    """Write a model folder; existing files are replaced only when everything is written.

    Args:
      folder: destination.
      config: description of the model.
      variables: for each component the config describes, its variables. Parameters are stored as
        `weight_dtype`, other collections (the codebook) as float32.
      tokenizer_bytes: content of a SentencePiece `.model` file; needed if the config has a t5.
      license_text: content of the LICENSE file, the terms under which the weights may be used.
      weight_dtype: "float32", "float16" or "bfloat16".
      provenance: identities of the components and what they were trained with, as far as known;
        missing identities are computed from `variables`.

    Raises:
      ConfigError: components that do not fit together, or an unknown `weight_dtype`.
      ModelFolderError: variables that do not fit the config, or values `weight_dtype` cannot hold.
    """
    check_components_fit(config)
    if weight_dtype not in WEIGHT_DTYPES:
        raise ConfigError(f"weight_dtype = {weight_dtype!r} is none of {', '.join(WEIGHT_DTYPES)}")
    expected = set(present_components(config))
    if set(variables) != expected:
        raise ModelFolderError(
            f"variables are given for {sorted(variables)}, config needs {sorted(expected)}"
        )
    if (tokenizer_bytes is None) != (config.t5 is None):
        raise ModelFolderError("a tokenizer is needed exactly if the model has a t5")
    with replace_files_when_done(folder) as temporary:
        for component, tree in variables.items():
            flat = {
                name: _stored(f"{component}: {name}", value, weight_dtype)
                for name, value in flatten_dict(jax.device_get(dict(tree)), sep=".").items()
            }
            # not save_file, which makes files that only their owner can read
            (temporary / f"{component}.safetensors").write_bytes(save(flat))
            _check_weights(temporary / f"{component}.safetensors", config, component)
        document = {"format_version": FORMAT_VERSION, **to_dict(config)}
        (temporary / "config.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        (temporary / "LICENSE").write_text(license_text, "utf-8")
        identities = {
            component: provenance.identities.get(component) or identity(tree)
            for component, tree in variables.items()
        }
        if tokenizer_bytes is not None:
            (temporary / "tokenizer.model").write_bytes(tokenizer_bytes)
            identities[TOKENIZER] = bytes_identity(tokenizer_bytes)
        complete = Provenance(identities, provenance.trained_with)
        require_fit(complete, str(folder))
        hashes = {
            component: file_identity(temporary / f"{component}.safetensors")
            for component in variables
        }
        write_provenance(temporary, complete, hashes)


def _stored(name: str, value: Any, weight_dtype: str) -> np.ndarray:
    dtype = WEIGHT_DTYPES[weight_dtype if ": params." in name else "float32"]
    value = np.asarray(value, np.float32)
    with np.errstate(over="ignore"):
        stored = value.astype(dtype)
    if not np.isfinite(stored.astype(np.float32)).all():
        largest = float(np.abs(value).max())
        raise ModelFolderError(
            f"{name} (largest value {largest:g}) is not finite as {dtype.__name__}"
        )
    return np.ascontiguousarray(stored)


def _read_config(path: Path) -> ModelConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path.parent} has no config.json: not a model folder") from None
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or values.pop("format_version", None) not in READABLE_VERSIONS:
        readable = " or ".join(map(str, READABLE_VERSIONS))
        raise ModelFolderError(f"{path} is not of format_version {readable}")
    try:
        config = from_dict(ModelConfig, values)
        check_components_fit(config)
    except ConfigError as error:
        raise ModelFolderError(f"{path}: {error}") from None
    return config


def _weight_path(folder: Path, config: ModelConfig, component: str) -> Path:
    if not has_component(config, component):
        raise ModelFolderError(f"model folder {folder} has no component '{component}'")
    return folder / f"{component}.safetensors"


def _open_weights(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except FileNotFoundError:
        raise ModelFolderError(f"{path.parent} lacks {path.name}") from None
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{path} is damaged or cut short: {error}") from None


def _check_weights(path: Path, config: ModelConfig, component: str) -> None:
    """Compare a weight file's header with the module's own structure."""
    try:
        abstract = flatten_dict(abstract_variables(config, component), sep=".")
    except (TypeError, ValueError) as error:  # sizes no module can be built from
        reason = str(error).partition("\n")[0]
        raise ModelFolderError(f"config for {path.name} is not usable: {reason}") from None
    with _open_weights(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name, leaf in abstract.items():
        if name not in found:
            raise ModelFolderError(f"{path}: tensor {name} {leaf.shape} is missing")
        if found[name] != leaf.shape:
            raise ModelFolderError(
                f"{path}: tensor {name} has shape {found[name]}, config.json asks for {leaf.shape}"
            )
    left_over = sorted(set(found) - set(abstract))
    if left_over:
        raise ModelFolderError(f"{path}: tensor {left_over[0]} is not part of this model")
