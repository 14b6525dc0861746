"""Several copies of the same weights in one file: which are the averaged ones.

Trainers keep an average of the weights (EMA) beside those that are trained on, under whatever name:
`state_dict_ema`, `model_ema`, `ema_state_dict`, `shadow_params`, `ema` with `1.ema_model` and
`1.online_model`. The averaged ones are what samples are drawn with.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gct_jax.errors import ModelFolderError

AVERAGED, ONLINE = "averaged", "online"
WORDS = {"shadow", "averaged", "average", "avg", "swa", "polyak"}
BUFFERS = (".beta", "_codebook.embed", "_codebook.initted", "_codebook.cluster_size")
ITEM = re.compile(r"(.+)/(\d+)")


def is_averaged(prefix: str) -> bool:
    """Whether the names of a copy, such as "ema/1.ema_model.", say that it is an average."""
    words = re.split(r"[^a-z]+", prefix.lower())
    if "online" in words:
        return False
    return any(word in WORDS or word.startswith("ema") for word in words)


def choose_copy(prefixes: Sequence[str], copy: str | None) -> str:
    """The prefix of the copy to read.

    Args:
      prefixes: of all copies.
      copy: "averaged", "online" or a prefix; None takes the averaged one if there is one.

    Raises:
      ModelFolderError: there is no such copy, or more than one.
    """
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    online = [prefix for prefix in prefixes if prefix not in averaged]
    groups = {None: averaged or online, AVERAGED: averaged, ONLINE: online}
    named = [prefix for prefix in prefixes if prefix.strip("./") == (copy or "").strip("./")]
    chosen = groups.get(copy, named)
    listed = ", ".join(repr(prefix.rstrip("./")) for prefix in prefixes)
    if not chosen:
        raise ModelFolderError(f"holds no copy {copy!r} of the weights; its copies are {listed}")
    if len(chosen) > 1:
        raise ModelFolderError(
            f"holds {len(chosen)} copies of the weights that cannot be told apart "
            f"({', '.join(repr(prefix) for prefix in chosen)}); name one with --copy"
        )
    return chosen[0]


def name_averages(
    tensors: dict[str, np.ndarray], structure: Any
) -> tuple[dict[str, np.ndarray], Any]:
    """Give the tensors of an averaged copy that is a mere list the names of the copy beside it.

    Such a list follows the parameters in their order, without buffers; it is named only if the
    shapes agree from the first to the last.

    Raises:
      ModelFolderError: the list fits no copy, so that nobody can say what it averages.
    """
    lists: dict[str, list[str]] = {}
    for name in tensors:
        found = ITEM.fullmatch(name)
        if found and is_averaged(found[1]):
            lists.setdefault(found[1], []).append(name)
    names: dict[str, str] = {}
    for group, items in lists.items():
        beside = [name for name in tensors if not name.startswith(f"{group}/")]
        copy = next(filter(None, (_aligned(tensors, items, c) for c in _copies(beside))), None)
        if copy is None:
            raise ModelFolderError(
                f"{group!r} is a list of {len(items)} tensors without names, and their shapes fit "
                "no other weights of the file; save the averaged state dict with its names"
            )
        names |= {item: f"{group}/{name}" for item, name in zip(items, copy, strict=True)}
    renamed = {names.get(name, name): value for name, value in tensors.items()}
    return renamed, _renamed(structure, names)


def _copies(names: Sequence[str]) -> list[dict[str, str]]:
    """The other groups of tensors, {name inside: name}, in the order of the file."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        prefix, _, inside = name.rpartition("/")
        groups.setdefault(prefix, {})[inside] = name
    return list(groups.values())


def _aligned(
    tensors: Mapping[str, np.ndarray], items: Sequence[str], copy: Mapping[str, str]
) -> list[str] | None:
    parameters = [inside for inside in copy if not inside.endswith(BUFFERS)]
    shapes = [tensors[copy[inside]].shape for inside in parameters]
    return parameters if shapes == [tensors[item].shape for item in items] else None


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A file's structure (see `documents`) with tensors under other names."""
    if node is None or not names:
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return {kind: names.get(content, content)}
    if kind == "dict":
        return {kind: [[key, _renamed(value, names)] for key, value in content]}
    if kind in ("list", "tuple"):
        return {kind: [_renamed(value, names) for value in content]}
    return node
