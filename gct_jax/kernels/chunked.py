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

from gct_jax.kernels.bias import RelativeBias, bias_tiles, tokens_per_chunk
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
    chunk = min(queries, max(UNBIASED_CHUNK, chunk_tokens))
    if bias is not None:
        chunk = tokens_per_chunk(bias, chunk_tokens)
    chunks = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - queries), (0, 0), (0, 0)))
    blocks = rearrange(padded, "b (n q) h d -> n b q h d", n=chunks)

    def attend_block(block: Array, index: Array, operands: tuple) -> Array:
        k, v, key_mask, tiles = operands
        tile = None if tiles is None else tiles(index)
        return attend(block, k, v, scale, tile, null_keys, key_mask, causal, index * chunk)

    def open_bias(k: Array, v: Array, bias: RelativeBias | None, key_mask: Array | None) -> tuple:
        return k, v, key_mask, None if bias is None else bias_tiles(bias, chunk_tokens)

    def side_by_side(blocks: Array, *given: Any) -> Array:
        operands = open_bias(*given)
        step = jax.checkpoint(lambda block, index: attend_block(block, index, operands))
        return lax.map(lambda xs: step(*xs), (blocks, jnp.arange(chunks)))

    @jax.custom_vjp
    def in_place(blocks: Array, *given: Any) -> Array:
        operands = open_bias(*given)

        def body(index: Array, blocks: Array) -> Array:
            block = lax.dynamic_index_in_dim(blocks, index, keepdims=False)
            out = attend_block(block, index, operands)
            return lax.dynamic_update_index_in_dim(blocks, out, index, axis=0)

        return lax.fori_loop(0, chunks, body, blocks)

    # A chunk's output takes the place of its queries. Outputs of their own begin as zeros, and XLA
    # makes those of all layers before the first one: 14 MB each for 6,464 tokens of 512 channels.
    in_place.defvjp(
        lambda *given: (in_place(*given), given),
        lambda given, gradient: jax.vjp(side_by_side, *given)[1](gradient),
    )
    walk = in_place if q.dtype == v.dtype else side_by_side
    out = walk(blocks, k, v, bias, key_mask)
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :queries]
