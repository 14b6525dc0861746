"""PyTorch `.pt` files as plain NumPy arrays and back: the one place that imports torch.

A `.pt` file is a pickle, and an ordinary unpickler runs whatever code the file asks for. Only
torch's restricted unpickler is used here (`weights_only=True`), which knows tensors, containers and
numbers and refuses everything else.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gct_jax.errors import InputError, ModelFolderError


def read_torch(path: str | Path) -> Any:
    """Content of a `.pt` file with every tensor turned into a NumPy array.

    Dicts, lists and tuples keep their nesting; bfloat16 tensors stay bfloat16 (`ml_dtypes`).

    Raises:
      InputError: torch is not installed.
      ModelFolderError: the file is missing or damaged, or holds Python objects other than tensors,
        containers and plain values.
    """
    torch = _torch(f"to read {path}")
    if not Path(path).is_file():
        raise ModelFolderError(f"there is no weight file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to report files of odd origin to PyTorch
            # Memory-mapped: a large file is read tensor by tensor as the tensors are used.
            document = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise ModelFolderError(
                f"{path} is no PyTorch weight file (a plain pickle, or damaged); it was not run"
            ) from None
        raise ModelFolderError(
            f"{path} asks to run Python code ({foreign[1]}) while it is read; this is refused. "
            "Save the state dict alone, as .pt or .safetensors"
        ) from None
    except Exception:  # what a damaged file makes the unpickler raise is anyone's guess
        raise ModelFolderError(f"{path} is damaged or cut short, or no PyTorch file") from None
    return _to_numpy(torch, document, str(path))


def write_torch(path: str | Path, document: Any) -> None:
    """Write nested dicts, lists and tuples of NumPy arrays and plain values as a `.pt` file.

    Raises:
      InputError: torch is not installed.
    """
    torch = _torch(f"to write {path}")
    torch.save(_to_torch(torch, document), path)


def have_torch() -> bool:
    """Whether `.pt` files can be read and written here."""
    try:
        _torch("")
    except InputError:
        return False
    return True


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"PyTorch is needed {purpose}: pip install 'gct_jax[convert]'; .safetensors files need "
            "none of it"
        ) from None
    return torch


def _to_numpy(torch: Any, node: Any, where: str) -> Any:
    if isinstance(node, torch.Tensor):
        node = node.detach()
        if node.dtype == torch.bfloat16:  # NumPy itself has no such type
            return node.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return node.numpy()
    if isinstance(node, dict):
        return {key: _to_numpy(torch, value, where) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        items = [_to_numpy(torch, value, where) for value in node]
        return items if isinstance(node, list) else tuple(items)
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise ModelFolderError(f"{where} holds a {type(node).__name__}, which is no weight")


def _to_torch(torch: Any, node: Any) -> Any:
    if isinstance(node, np.ndarray):
        # Copied in C order: torch knows no negative strides and warns about read-only memory.
        array = np.array(node, order="C")
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    if isinstance(node, dict):
        return {key: _to_torch(torch, value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        items = [_to_torch(torch, value) for value in node]
        return items if isinstance(node, list) else tuple(items)
    return node
