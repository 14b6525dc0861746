"""Attention in chunks of queries, by default one frame each; arguments as in `attention`.

A chunk's logits are computed again in the backward pass, so memory is linear in the number of
frames. XLA only: it runs on every device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from gct_jax.array_types import KeyMask, Queries
from gct_jax.kernels.bias import RelativeBias, bias_tiles, tokens_per_chunk
from gct_jax.kernels.dense import attend_dense

UNBIASED_CHUNK = 256

# (queries [batch, chunk, heads, dim_head], number of the chunk) -> their output
ChunkFn = Callable[[Array, Array], Array]


def attend_chunked(
    q: Queries,
    k: Any,
    v: Any,
    scale: float,
    bias: RelativeBias | None,
    null_keys: int,
    key_mask: KeyMask | None,
    causal: bool,
    *,
    chunk_tokens: int = 1,
    attend: Callable[..., Array] = attend_dense,
) -> Queries:
    """Attention of one chunk of queries after the other.

    Args:
      k, v: as `attend` takes them.
      chunk_tokens: with a bias, a chunk holds whole frames, as few as have that many tokens.
      attend: attention of a chunk, called like `attend_dense`.
    """
    queries = q.shape[1]
    chunk = min(queries, max(UNBIASED_CHUNK, chunk_tokens))
    if bias is not None:
        chunk = tokens_per_chunk(bias, chunk_tokens)
    chunks = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - queries), (0, 0), (0, 0)))
    blocks = rearrange(padded, "b (n q) h d -> n b q h d", n=chunks)

    def chunk_attention(
        k: Any, v: Any, bias: RelativeBias | None, key_mask: Array | None
    ) -> ChunkFn:
        tiles = None if bias is None else bias_tiles(bias, chunk_tokens)

        def attend_chunk(block: Array, index: Array) -> Array:
            tile = None if tiles is None else tiles(index)
            return attend(block, k, v, scale, tile, null_keys, key_mask, causal, index * chunk)

        return attend_chunk

    out_dtype = jax.tree.leaves(v)[0].dtype
    walk = _in_place if q.dtype == out_dtype else _side_by_side
    out = walk(chunk_attention)(blocks, k, v, bias, key_mask)
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :queries]


def _side_by_side(chunk_attention: Callable[..., ChunkFn]) -> Callable[..., Array]:
    """(blocks [chunks, ...], operands) -> what each block becomes, differentiable: the backward
    pass computes a chunk again."""

    def walk(blocks: Array, *operands: Any) -> Array:
        step = jax.checkpoint(chunk_attention(*operands))
        return lax.map(lambda xs: step(*xs), (blocks, jnp.arange(len(blocks))))

    return walk


def _in_place(chunk_attention: Callable[..., ChunkFn]) -> Callable[..., Array]:
    """The same, a chunk's output in the place of its queries.

    Outputs of their own begin as zeros, and XLA makes those of all layers before the first one:
    14 MB each for 6,464 tokens of 512 channels.
    """

    @jax.custom_vjp
    def walk(blocks: Array, *operands: Any) -> Array:
        step = chunk_attention(*operands)

        def body(index: Array, blocks: Array) -> Array:
            block = lax.dynamic_index_in_dim(blocks, index, keepdims=False)
            return lax.dynamic_update_index_in_dim(blocks, step(block, index), index, axis=0)

        return lax.fori_loop(0, len(blocks), body, blocks)

    def forward(*given: Any) -> tuple[Array, tuple]:
        return walk(*given), given

    def backward(given: tuple, gradient: Array) -> tuple:
        return jax.vjp(_side_by_side(chunk_attention), *given)[1](gradient)

    walk.defvjp(forward, backward)
    return walk
