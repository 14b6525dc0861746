"""A position bias by the relative offset of two tokens on a (time, height, width) grid.

Tokens are in row-major order. Among N = T H W tokens there are N^2 pairs but only

    (2T-1)(2H-1)(2W-1)                                                                  (1)

distinct offsets, so the bias travels as the table of these, and each backend of the attention
expands no more of it at a time than it needs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax


@functools.partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=["grid"])
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Additive bias by offset (query minus key).

    table: [heads, 2T-1, 2H-1, 2W-1] float32; entry [h, T-1+a, H-1+b, W-1+c] belongs to (a, b, c).
    grid: (T, H, W), the extent of the token grid.
    """

    table: jax.Array
    grid: tuple[int, int, int]


def bias_matrix(bias: RelativeBias) -> jax.Array:
    """The bias of every token pair, [heads, T*H*W queries, T*H*W keys]."""
    return expand_frames(expand_rows(bias.table))


def toeplitz(table: jax.Array, axis: int) -> jax.Array:
    """Replace an axis of 2n-1 offsets by two axes (query, key) of extent n.

    Built from n shifted slices: a gather's transpose, a scatter, is slow on every device.
    """
    n = (table.shape[axis] + 1) // 2
    descending = jnp.flip(table, axis)
    rows = [lax.slice_in_dim(descending, n - 1 - i, 2 * n - 1 - i, axis=axis) for i in range(n)]
    return jnp.stack(rows, axis)


def expand_rows(table: jax.Array) -> jax.Array:
    """[heads, offsets, 2H-1, 2W-1] -> [heads, offsets, H*W queries, H*W keys]."""
    pairs = toeplitz(toeplitz(table, 3), 2)  # [heads, offsets, H, H', W, W']
    return rearrange(pairs, "h t i j k l -> h t (i k) (j l)")


def expand_frames(rows: jax.Array) -> jax.Array:
    """[heads, 2T-1, H*W, H*W] -> [heads, T*H*W, T*H*W]."""
    return rearrange(toeplitz(rows, 1), "h s t q k -> h (s q) (t k)")
