"""Multi-head attention with an additive bias that depends only on the relative grid offset.

    logits[i, j] = scale * <q_i, k_j> + table[position(i) - position(j)]               (1)
    out_i        = sum_j softmax_j(logits[i, :]) v_j                                   (2)

Tokens lie on a (time, height, width) grid in row-major order. The bias of equation (1) has only
(2T-1)(2H-1)(2W-1) distinct values, so it travels as that table. The backends compute the same:

* "dense" holds all logits at once, memory O(queries * keys);
* "unrolled" does so with a matrix product of its own for each sample and head;
* "chunked" walks over chunks of queries, by default one frame each, and recomputes a chunk's
  logits in the backward pass, so that memory is linear in the number of frames.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

# Above this many logits per head, walking over chunks is the faster way on a CPU as well as the
# smaller one (measured forward and backward: 332 k still dense, 2.6 M chunked by a factor of 2).
DENSE_LOGITS_LIMIT = 512 * 1024
UNBIASED_CHUNK = 256
# XLA's batched products on a CPU run at half the speed of single ones; few and large ones are worth
# a program that is longer by their number.
UNROLLED_PRODUCTS = 16
UNROLLED_LOGITS = 32 * 1024


@functools.partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=["grid"])
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Additive bias by offset (query minus key).

    table: [heads, 2T-1, 2H-1, 2W-1] float32; entry [h, T-1+a, H-1+b, W-1+c] belongs to (a, b, c).
    grid: (T, H, W), the extent of the token grid.
    """

    table: jax.Array
    grid: tuple[int, int, int]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    bias: RelativeBias | None = None,
    null_keys: int = 0,
    key_mask: jax.Array | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention, equations (1) and (2); the softmax is computed in float32.

    Args:
      q: [batch, queries, heads, dim_head].
      k, v: [batch, null_keys + keys, heads, dim_head].
      scale: factor on the dot products.
      bias: offsets on a grid of exactly `queries` = `keys` tokens, or None.
      null_keys: leading keys that have no bias and are never masked.
      key_mask: [batch, keys] bool, False hides a key; the null keys are not part of it.
      causal: key j is hidden from query i < j.
      backend: "dense", "unrolled", "chunked" or "auto" (by device and size).

    Returns:
      [batch, queries, heads, dim_head] in the dtype of `v`.

    Raises:
      ValueError: an unknown backend, or shapes that contradict the bias grid or the mask.
    """
    queries, keys = q.shape[1], k.shape[1] - null_keys
    if bias is not None and not queries == keys == math.prod(bias.grid):
        raise ValueError(f"bias grid {bias.grid} does not fit {queries} queries and {keys} keys")
    if key_mask is not None and key_mask.shape[1] != keys:
        raise ValueError(f"key_mask has {key_mask.shape[1]} columns for {keys} keys")
    if backend == "auto":
        backend = _choose(q.shape[0] * q.shape[2], queries * keys)
    if backend in ("dense", "unrolled"):
        attend = _attend if backend == "dense" else _unrolled
        dense_bias = None if bias is None else bias_matrix(bias)
        return attend(q, k, v, scale, dense_bias, null_keys, key_mask, causal, 0)
    if backend == "chunked":
        return _chunked(q, k, v, scale, bias, null_keys, key_mask, causal)
    raise ValueError(f"backend {backend!r} is not one of 'auto', 'dense', 'unrolled', 'chunked'")


def _choose(products: int, logits: int) -> str:
    """Backend for this many (sample, head) pairs of so many logits each."""
    if logits > DENSE_LOGITS_LIMIT:
        return "chunked"
    few_and_large = products <= UNROLLED_PRODUCTS and logits >= UNROLLED_LOGITS
    return "unrolled" if few_and_large and jax.default_backend() == "cpu" else "dense"


def bias_matrix(bias: RelativeBias) -> jax.Array:
    """The bias of every token pair, [heads, T*H*W queries, T*H*W keys]."""
    return _expand_frames(_expand_rows(bias.table))


def _attend(q, k, v, scale, bias, null_keys, key_mask, causal, first_query):
    """Attention of a block of queries that starts at position `first_query`.

    bias: [heads, queries, keys] or None.
    """
    logits = scale * jnp.einsum(
        "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
    )  # [batch, heads, queries, null + keys]
    if bias is not None:
        logits += jnp.pad(bias, ((0, 0), (0, 0), (null_keys, 0)))
    visible = _visible(q.shape[1], k.shape[1], null_keys, key_mask, causal, first_query)
    if visible is not None:
        # The lowest finite value: a row without any visible key becomes uniform, not NaN.
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _visible(queries, keys, null_keys, key_mask, causal, first_query):
    """Which keys a query sees, bool [batch or 1, 1, queries or 1, null + keys], or None: all."""
    visible = None
    if key_mask is not None:
        visible = jnp.pad(key_mask, ((0, 0), (null_keys, 0)), constant_values=True)
        visible = visible[:, None, None, :]
    if causal:
        position = first_query + jnp.arange(queries)
        past = position[:, None] >= jnp.arange(keys - null_keys)
        past = jnp.pad(past, ((0, 0), (null_keys, 0)), constant_values=True)[None, None]
        visible = past if visible is None else visible & past
    return visible


def _unrolled(q, k, v, scale, bias, null_keys, key_mask, causal, first_query):
    """As `_attend`, but a matrix product for each sample and head, and normalised last: a division
    per output instead of one per logit."""
    batch, queries, heads, _ = q.shape
    visible = _visible(queries, k.shape[1], null_keys, key_mask, causal, first_query)
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (null_keys, 0)))

    def one(sample, head):
        logits = scale * jnp.dot(
            q[sample, :, head], k[sample, :, head].T, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits += bias[head]
        if visible is not None:
            seen = visible[sample % visible.shape[0], 0]
            logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
        highest = lax.stop_gradient(logits.max(-1, keepdims=True))
        weights = jnp.exp(logits - highest)  # [queries, null + keys]
        total = weights.sum(-1, keepdims=True)
        out = jnp.dot(
            weights.astype(v.dtype), v[sample, :, head], preferred_element_type=jnp.float32
        )
        return (out / total).astype(v.dtype)

    rows = [jnp.stack([one(b, h) for h in range(heads)], axis=1) for b in range(batch)]
    return jnp.stack(rows)


def _chunked(q, k, v, scale, bias, null_keys, key_mask, causal):
    queries = q.shape[1]
    if bias is not None:
        table, grid = bias.table, bias.grid
        if grid[0] == 1:  # a single frame is walked row by row: the same offsets, axes swapped
            table, grid = jnp.swapaxes(table, 1, 2), (grid[1], 1, grid[2])
        chunk = grid[1] * grid[2]
    else:
        chunk = min(queries, UNBIASED_CHUNK)
    chunks = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - queries), (0, 0), (0, 0)))
    blocks = rearrange(padded, "b (n q) h d -> n b q h d", n=chunks)

    @jax.checkpoint
    def attend_block(block, index):
        tile = None
        if bias is not None:
            # Offsets of this query frame to all key frames 0..T-1 are T consecutive, descending
            # entries of the table.
            rows = lax.dynamic_slice_in_dim(table, index, grid[0], axis=1)
            rows = jnp.flip(_expand_rows(rows), axis=1)  # [heads, key frame, H*W, H*W]
            tile = rearrange(rows, "h t q k -> h q (t k)")
        return _attend(block, k, v, scale, tile, null_keys, key_mask, causal, index * chunk)

    out = lax.map(lambda xs: attend_block(*xs), (blocks, jnp.arange(chunks)))
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :queries]


def _toeplitz(table: jax.Array, axis: int) -> jax.Array:
    """Replace an axis of 2n-1 offsets by two axes (query, key) of extent n.

    Built from n shifted slices: a gather's transpose, a scatter, is slow on every device.
    """
    n = (table.shape[axis] + 1) // 2
    descending = jnp.flip(table, axis)
    rows = [lax.slice_in_dim(descending, n - 1 - i, 2 * n - 1 - i, axis=axis) for i in range(n)]
    return jnp.stack(rows, axis)


def _expand_rows(table: jax.Array) -> jax.Array:
    """[heads, offsets, 2H-1, 2W-1] -> [heads, offsets, H*W queries, H*W keys]."""
    pairs = _toeplitz(_toeplitz(table, 3), 2)  # [heads, offsets, H, H', W, W']
    return rearrange(pairs, "h t i j k l -> h t (i k) (j l)")


def _expand_frames(rows: jax.Array) -> jax.Array:
    """[heads, 2T-1, H*W, H*W] -> [heads, T*H*W, T*H*W]."""
    return rearrange(_toeplitz(rows, 1), "h s t q k -> h (s q) (t k)")
