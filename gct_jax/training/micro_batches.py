"""Gradient accumulation: a batch that is too large for the devices, computed in parts.

    f(x) = join over j of f(x_j),   x_j: rows j, k + j, 2 k + j, ... of x                    (1)

for a network f that treats each row alone. Only one part's activations exist at a time: the
backward pass computes each part's forward pass again, which costs a quarter to a third of a step.
In exchange the loss, whatever it is, is that of the whole batch: shares of masked tokens, codebook
statistics, critics and discriminators see every row at once, and the update is the full batch's.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from gct_jax.sharding import BATCH, splits_evenly


def in_micro_batches(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`function` computed as in equation (1), in `count` parts.

    Args:
      function: trees of arrays [rows, ...] -> a tree of arrays [rows, ...]; each row alone.
      count: must divide the rows, and leave each device the same number of a part's.
    """
    if count == 1:
        return function

    def apply(*rows: PyTree) -> Any:
        parts = jax.tree.map(lambda x: _split(x, count), rows)
        out = jax.lax.map(lambda part: jax.checkpoint(function)(*part), parts)
        return jax.tree.map(_joined, out)

    return apply


def _split(x: jax.Array, count: int) -> jax.Array:
    """[rows, ...] -> [count, rows / count, ...]; every device keeps the rows that it holds."""
    parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    if not splits_evenly(parts.shape[1]):
        return parts
    return jax.lax.with_sharding_constraint(parts, P(None, *BATCH))


def _joined(parts: jax.Array) -> jax.Array:
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
