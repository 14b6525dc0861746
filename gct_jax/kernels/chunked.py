"""Attention in chunks of queries, by default one frame each; arguments as in `attention`.

A chunk's logits are computed again in the backward pass, so memory is linear in the number of
frames. XLA only: it runs on every device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from gct_jax.kernels.bias import RelativeBias, bias_tiles
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
    tiles: Callable[[Array], list[Array]] | None = None
    chunk = min(queries, max(UNBIASED_CHUNK, chunk_tokens))
    if bias is not None:
        tiles, chunk = bias_tiles(bias, chunk_tokens)
    chunks = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - queries), (0, 0), (0, 0)))
    blocks = rearrange(padded, "b (n q) h d -> n b q h d", n=chunks)

    @jax.checkpoint
    def attend_block(block: Array, index: Array) -> Array:
        tile = None if tiles is None else tiles(index)
        return attend(block, k, v, scale, tile, null_keys, key_mask, causal, index * chunk)

    out = lax.map(lambda xs: attend_block(*xs), (blocks, jnp.arange(chunks)))
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :queries]
