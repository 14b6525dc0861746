"""Weight files of other programs: `.safetensors`, or `.pt` by way of torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gct_jax.errors import InputError, ModelFolderError

FLOAT_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def read_weight_file(path: str | Path) -> Any:
    """Content of a `.pt`, `.pth`, `.bin` or `.safetensors` file, tensors as NumPy arrays.

    A `.safetensors` file is a flat dict of tensors; the others may nest dicts and lists.

    Raises:
      InputError: another suffix, or a file that needs torch where there is none.
      ModelFolderError: the file is missing or damaged, or holds more than weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix in (".pt", ".pth", ".bin"):
        from gct_jax.interop.torch_files import read_torch

        return read_torch(path)
    raise InputError(f"{path} is neither a .pt nor a .safetensors file")


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a `.safetensors` file in their stored types, and its metadata.

    Raises:
      ModelFolderError: the file is missing or damaged, or has a type NumPy lacks.
    """
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise ModelFolderError(f"there is no weight file {path}") from None
    except (OSError, SafetensorError, AttributeError, TypeError, KeyError) as error:
        raise ModelFolderError(f"{path} is damaged or cut short: {error}") from None


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in their own types."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode  # save_file's own files can be read by their owner alone
    save_file(contiguous, path, metadata=dict(metadata or {}))
    path.chmod(mode)


def without_wrappers(name: str) -> str:
    """A tensor's name without what `torch.compile` and data-parallel wrappers put into it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def as_float32(name: str, value: np.ndarray) -> np.ndarray:
    """A weight of 16 or 32 bits as float32, which holds all of them exactly.

    Raises:
      ModelFolderError: another type, or values that are not finite.
    """
    if value.dtype not in FLOAT_TYPES:
        raise ModelFolderError(
            f"tensor {name!r} is of type {value.dtype}, not float32, float16 or bfloat16"
        )
    value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        raise ModelFolderError(f"tensor {name!r} holds values that are not finite (NaN or inf)")
    return value
