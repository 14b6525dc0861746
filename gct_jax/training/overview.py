"""What a run's state is made of and how it lies on the devices, as a table to read at the start."""

import math
import sys
from typing import Any

import jax
from jaxtyping import PyTree

from gct_jax.training.state import TREES, TrainState

HEADER = ("part", "arrays", "numbers", "MB", "MB a device")


def state_table(state: TrainState, shardings: PyTree) -> str:
    """Lines of the parts of a state, abstract or not: how many arrays and numbers, bytes in all and
    on each device."""
    rows: list[tuple[str, ...]] = [HEADER]
    for tree in TREES:
        for component, leaves in getattr(state, tree).items():
            placed = jax.tree.leaves(getattr(shardings, tree)[component])
            rows.append(_row(f"{tree}.{component}", jax.tree.leaves(leaves), placed))
    return _aligned(rows)


def parameter_table(state: TrainState, shardings: PyTree) -> str:
    """A line for each trained array: its path, shape and layout."""
    rows: list[tuple[str, ...]] = [("parameter", "shape", "layout", "MB a device")]
    placed = jax.tree.leaves(shardings.params)
    arrays = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, leaf), sharding in zip(arrays, placed, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layout = ", ".join(str(axis) for axis in sharding.spec) or "whole"
        size = _bytes(sharding.shard_shape(leaf.shape), leaf)
        rows.append((name, str(tuple(leaf.shape)), layout, f"{size / 1e6:,.3f}"))
    return _aligned(rows)


def tell_undonated(state: TrainState) -> None:
    """Tell on stderr if a state that a step has taken over still holds memory."""
    left = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_deleted()]
    size = sum(_bytes(leaf.shape, leaf) for leaf in left if hasattr(leaf.dtype, "itemsize"))
    if left:
        print(
            f"note: {len(left)} arrays of the state ({size / 1e6:,.1f} MB) are held twice: the "
            "step does not reuse their memory",
            file=sys.stderr,
        )


def _row(name: str, leaves: list[Any], shardings: list[Any]) -> tuple[str, ...]:
    numbers = sum(math.prod(leaf.shape) for leaf in leaves)
    whole = sum(_bytes(leaf.shape, leaf) for leaf in leaves)
    own = sum(
        _bytes(sharding.shard_shape(leaf.shape), leaf)
        for leaf, sharding in zip(leaves, shardings, strict=True)
    )
    return name, str(len(leaves)), f"{numbers:,}", f"{whole / 1e6:,.1f}", f"{own / 1e6:,.1f}"


def _bytes(shape: tuple[int, ...], leaf: Any) -> int:
    return math.prod(shape) * leaf.dtype.itemsize


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
