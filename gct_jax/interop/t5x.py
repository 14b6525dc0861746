"""Read and write the encoder of T5X checkpoints, without T5X.

A checkpoint is a folder with a msgpack file `checkpoint`:

    {"version": 3, "optimizer": {"target": {"encoder": {..}, "token_embedder": {..}, ..}, ..}}

whose leaves are arrays, or describe a zarr array in a folder beside it named after its path, for
instance `target.encoder.encoder_norm.scale`. Of either, only the encoder is read: other values are
skipped while the file is parsed, and no folder of theirs is opened.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from gct_jax.config import T5Config, module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.weight_files import as_float32
from gct_jax.interop.zarr_arrays import read_zarr, write_zarr
from gct_jax.models.t5 import BUCKETS, T5Encoder
from gct_jax.random_keys import random_key

INDEX = "checkpoint"
TARGET = ("optimizer", "target")
WANTED = ("encoder", "token_embedder")
ARRAY_CODE = 1  # flax's msgpack extension for arrays
PLACEHOLDER = "PLACEHOLDER://"
VERSION = 3
TENSORFLOW_STATE = b"model_checkpoint_path:"


def t5_from_t5x(path: str | Path, max_length: int = 256) -> tuple[T5Config, dict[str, Any]]:
    """Config and variables of `T5Encoder` from a T5X checkpoint of T5 1.1.

    Args:
      path: the checkpoint's folder, or its msgpack file.
      max_length: tokens per text, with the end token; the checkpoint does not record it.

    Returns:
      The config and `{"params": ...}` with float32 NumPy arrays.

    Raises:
      ModelFolderError: a file or array is missing or damaged, or the model is of another family.
    """
    index = Path(path) / INDEX if Path(path).is_dir() else Path(path)
    if not index.is_file():
        _refuse_tensorflow(Path(path), index)
        raise ModelFolderError(
            f"{path} is neither a T5X checkpoint (a folder with a file '{INDEX}') nor a Hugging "
            "Face folder (with config.json)"
        )
    _refuse_tensorflow(Path(path), index)
    leaves = _read_index(index)
    _require_t5_1_1(index, leaves)
    flat = {
        name: as_float32(f"{path}: {name}", _read_leaf(index, name, leaf))
        for name, leaf in leaves.items()
    }
    config = _config(index, flat, max_length)
    init = T5Encoder(**module_fields(config)).init
    abstract = jax.eval_shape(init, random_key(0), jnp.zeros((1, 1), jnp.int32))
    expected = {k: x.shape for k, x in flatten_dict(abstract["params"], sep="/").items()}
    for name in sorted(expected | flat):
        shape = flat[name].shape if name in flat else "nothing"
        if shape != expected.get(name):
            raise ModelFolderError(
                f"{index}: {name} is {shape}; a T5 1.1 encoder of this size has "
                f"{expected.get(name, 'nothing')} there"
            )
    return config, {"params": unflatten_dict(flat, sep="/")}


def _refuse_tensorflow(path: Path, index: Path) -> None:
    """Raise ModelFolderError for the checkpoints of the original T5, before T5X."""
    folder = path if path.is_dir() else path.parent
    start = b""
    if index.is_file():
        with index.open("rb") as file:
            start = file.read(len(TENSORFLOW_STATE))
    of_tensorflow = re.search(r"\.(index|meta|data-\d+-of-\d+)$|^model\.ckpt-\d+$", path.name)
    only_tensorflow = not index.is_file() and any(folder.glob("*.ckpt-*.index"))
    if start == TENSORFLOW_STATE or of_tensorflow or (path.is_dir() and only_tensorflow):
        raise ModelFolderError(
            f"{path} is a TensorFlow checkpoint (T5 before T5X); give the T5X checkpoint of the "
            "same model, or its Hugging Face folder"
        )


def t5_to_t5x(variables: dict[str, PyTree], folder: str | Path) -> None:
    """Write the parameters of a `T5Encoder` into `folder`: msgpack index and zarr arrays.

    T5X restores these by name into the encoder of a T5 1.1; the decoder is not part of them.
    """
    target = {}
    for path, value in flatten_dict(jax.device_get(variables["params"])).items():
        name = ".".join(("target", *path))
        target[path] = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": f"{name}/"},
            "metadata": write_zarr(Path(folder) / name, np.asarray(value, np.float32)),
        }
    state = {"step": np.int32(0), "param_states": {}}
    optimizer = {"target": unflatten_dict(target), "state": state}
    document = {"version": VERSION, "optimizer": optimizer}
    (Path(folder) / INDEX).write_bytes(msgpack_serialize(document))


def _read_index(path: Path) -> dict[str, Any]:
    """Leaves of the encoder and the token embedding by their path joined with "/"."""
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file, ext_hook=_array, raw=False, strict_map_key=False, max_buffer_size=0
            )
            found = _descend(unpacker, TARGET)
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise ModelFolderError(
            f"{path} is no T5X checkpoint, or damaged or cut short: {error}"
        ) from None
    return flatten_dict(found, sep="/", is_leaf=lambda _, node: _is_array_description(node))


def _descend(unpacker: msgpack.Unpacker, path: tuple[str, ...]) -> dict[str, Any]:
    """The wanted entries of the map at `path` below the one that the unpacker has come to."""
    found: dict[str, Any] = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        if path and key == path[0]:
            found = _descend(unpacker, path[1:])
        elif not path and key in WANTED:
            found[key] = unpacker.unpack()
        else:
            unpacker.skip()
    return found


def _array(code: int, content: bytes) -> Any:
    if code != ARRAY_CODE:
        return msgpack.ExtType(code, content)
    shape, name, values = msgpack.unpackb(content, raw=True)
    dtype = ml_dtypes.bfloat16 if name == b"bfloat16" else np.dtype(name.decode())
    return np.frombuffer(values, dtype).reshape(shape)


def _is_array_description(node: Any) -> bool:
    return {"driver", "kvstore", "metadata"} <= set(node)


def _require_t5_1_1(path: Path, leaves: dict[str, Any]) -> None:
    if not any(name.startswith("encoder/") for name in leaves):
        raise ModelFolderError(f"{path} holds no encoder under optimizer/target")
    if any(name.startswith("encoder/encoder/") for name in leaves):
        raise ModelFolderError(
            f"{path} was trained with scan_layers=True, which stacks all layers in one array and "
            "has a position bias per layer; only unscanned checkpoints can be read"
        )
    if "encoder/layers_0/mlp/wi/kernel" in leaves:
        raise ModelFolderError(
            f"{path} is a T5 1.0 (one input layer mlp/wi); T5 1.1 has mlp/wi_0 and mlp/wi_1"
        )


def _read_leaf(index: Path, name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        return leaf
    if isinstance(leaf, str) and leaf.startswith(PLACEHOLDER):
        return read_zarr(index.parent / leaf.removeprefix(PLACEHOLDER))
    if isinstance(leaf, dict) and leaf.get("driver") == "zarr":
        # Absolute paths and buckets are those of the machine that wrote the checkpoint.
        stored = leaf.get("path") or leaf["kvstore"]["path"]
        return read_zarr(index.parent / Path(stored).name)
    raise ModelFolderError(f"{index}: {name} is no array")


def _config(index: Path, flat: dict[str, np.ndarray], max_length: int) -> T5Config:
    layer = "encoder/layers_0"
    try:
        vocab_size, dim = flat["token_embedder/embedding"].shape
        heads, buckets = flat["encoder/relpos_bias/rel_embedding"].shape
        joined = flat[f"{layer}/attention/query/kernel"].shape[1]
        mlp_dim = flat[f"{layer}/mlp/wi_0/kernel"].shape[1]
    except KeyError as error:
        raise ModelFolderError(f"{index} lacks {error}: not a T5 1.1 encoder") from None
    except (ValueError, IndexError):
        raise ModelFolderError(f"{index}: arrays have other axes than those of T5 1.1") from None
    if buckets != BUCKETS:
        raise ModelFolderError(
            f"{index}: relpos_bias has {buckets} distance buckets; T5 1.1 has {BUCKETS}"
        )
    layers = {name.split("/")[1] for name in flat if name.startswith("encoder/layers_")}
    return T5Config(
        vocab_size=vocab_size,
        dim=dim,
        depth=len(layers),
        heads=heads,
        dim_head=joined // heads,
        mlp_dim=mlp_dim,
        max_length=max_length,
    )
