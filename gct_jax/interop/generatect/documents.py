"""Nested files of tensors and plain values, taken apart and put together again.

A trainer checkpoint nests dicts and lists of tensors, numbers and strings. Apart, it is a flat dict
of tensors, named by their keys joined with "/", and a JSON value that says where each belongs. The
wrappers of `torch.compile` ("_orig_mod.") and data parallelism ("module.") are left out of names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gct_jax.errors import ModelFolderError
from gct_jax.interop.weight_files import without_wrappers


def flatten_document(document: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Tensors by name and the structure around them, which is None for a flat dict of tensors.

    Raises:
      ModelFolderError: the document is not a dict.
    """
    if not isinstance(document, dict):
        raise ModelFolderError(f"holds a {type(document).__name__}, not named tensors")
    flat = all(isinstance(value, np.ndarray) for value in document.values())
    if flat and not any(without_wrappers(name) != name for name in document):
        return dict(document), None
    tensors: dict[str, np.ndarray] = {}
    return tensors, _structure(document, "", tensors)


def restore_document(structure: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `flatten_document` for a structure that is not None."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: restore_document(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [restore_document(value, tensors) for value in content]
        return items if kind == "list" else tuple(items)
    return content


def _structure(node: Any, name: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    def inner(key: Any, value: Any) -> dict[str, Any]:
        return _structure(
            value,
            f"{name}/{without_wrappers(str(key))}" if name else without_wrappers(str(key)),
            tensors,
        )

    if isinstance(node, np.ndarray):
        if name in tensors:
            raise ModelFolderError(f"holds two tensors named {name!r}, but for a wrapper's prefix")
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, dict):
        # Pairs, because the keys of an optimiser's state are numbers and JSON's are not.
        return {"dict": [[key, inner(key, value)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {type(node).__name__: [inner(i, value) for i, value in enumerate(node)]}
    return {"value": node}
