"""Attention in chunks of queries, by default one frame each; arguments as in `attention`.

A chunk's logits are computed again in the backward pass, so memory is linear in the number of
frames. XLA only: it runs on every device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from gct_jax.kernels.bias import RelativeBias, expand_rows
from gct_jax.kernels.dense import attend_dense

UNBIASED_CHUNK = 256


def attend_chunked(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    bias: RelativeBias | None,
    null_keys: int,
    key_mask: Array | None,
    causal: bool,
    *,
    chunk_tokens: int = 1,
    attend: Callable[..., Array] = attend_dense,
) -> Array:
    """Attention of one chunk of queries after the other.

    Args:
      chunk_tokens: with a bias, a chunk holds whole frames, as few as have that many tokens.
      attend: attention of a chunk, called like `attend_dense`.
    """
    queries = q.shape[1]
    table, grid, frames = None, (1, 1, 1), 1
    if bias is not None:
        table, grid = bias.table, bias.grid
        if grid[0] == 1:  # a single frame is walked row by row: the same offsets, axes swapped
            table, grid = jnp.swapaxes(table, 1, 2), (grid[1], 1, grid[2])
        frame_tokens = grid[1] * grid[2]
        frames = min(grid[0], -(-chunk_tokens // frame_tokens))
        chunk = frames * frame_tokens
    else:
        chunk = min(queries, max(UNBIASED_CHUNK, chunk_tokens))
    chunks = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - queries), (0, 0), (0, 0)))
    blocks = rearrange(padded, "b (n q) h d -> n b q h d", n=chunks)

    @jax.checkpoint
    def attend_block(block: Array, index: Array) -> Array:
        tile = None
        if table is not None:
            tile = jnp.concatenate(
                [_frame_bias(table, grid[0], index * frames + i) for i in range(frames)], axis=1
            )
        return attend(block, k, v, scale, tile, null_keys, key_mask, causal, index * chunk)

    out = lax.map(lambda xs: attend_block(*xs), (blocks, jnp.arange(chunks)))
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :queries]


def _frame_bias(table: Array, frames: int, frame: Array) -> Array:
    """Bias of the queries of one frame, [heads, H*W, T*H*W]."""
    # Its offsets to the key frames 0 .. T-1 are T consecutive, descending entries of the table.
    rows = lax.dynamic_slice_in_dim(table, frame, frames, axis=1)
    rows = jnp.flip(expand_rows(rows), axis=1)  # [heads, key frame, H*W, H*W]
    return rearrange(rows, "h t q k -> h q (t k)")
