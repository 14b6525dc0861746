"""From tokens of any number to the blocks of the TPU flash kernel and back.

Frames are padded to F' tokens and sequences to whole blocks; padding is hidden from every query.
Null keys, which have no bias, stay outside: with the normaliser L of the other keys and logits n_j
of the null keys,

    out = (exp(L) o + sum_j exp(n_j) v_j) / (exp(L) + sum_j exp(n_j))                       (1)

A kernel is opaque to XLA's partitioner. Under a mesh each device therefore runs it on its own
samples and heads (`jax.shard_map`); attention needs nothing from the others.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P

from gct_jax.array_types import KeyMask, KeyRows, Queries
from gct_jax.kernels.bias import RelativeBias, expand_rows
from gct_jax.kernels.flash_tpu import LANES, LOWEST, Blocks, flash, pack_tiles
from gct_jax.kernels.pallas_tpu import is_alone
from gct_jax.sharding import BATCH

BLOCK = 512  # tokens, where the frames allow it
SMALL_FRAME = LANES // 2
TILE_BYTES_LIMIT = 16 * 2**20  # of a head's tiles; with their gradient and copies 4 times as much


def fits_flash(bias: RelativeBias | None) -> bool:
    """Whether the tiles of one head fit into a TPU core's on-chip memory."""
    if bias is None:
        return True
    frame, frames = _frame_blocks(math.prod(bias.grid[1:]), BLOCK)
    offsets = 2 * _whole(bias.grid[0], frames)
    return offsets * frame * max(frame, LANES) * 4 <= TILE_BYTES_LIMIT


def attend_flash(
    q: Queries,
    k: KeyRows,
    v: KeyRows,
    scale: float,
    bias: RelativeBias | None,
    null_keys: int,
    key_mask: KeyMask | None,
    causal: bool,
    *,
    block: int = BLOCK,
) -> Queries:
    """Attention by the flash kernel, on each device of the current mesh for itself.

    Args:
      block: tokens of a block of queries or keys at most, a multiple of `LANES`.
    """
    run = functools.partial(_attend, scale=scale, null_keys=null_keys, causal=causal, block=block)
    if bias is not None and bias.tiles is None:
        bias = with_tiles(bias, block=block)
    grid = None if bias is None else bias.grid
    tables = None if bias is None else (bias.table, bias.tiles)
    if is_alone():
        return run(q, k, v, tables, key_mask, grid=grid)
    mesh = jax.sharding.get_abstract_mesh()
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    rows = BATCH[0] if q.shape[0] % math.prod(sizes[axis] for axis in BATCH[0]) == 0 else None
    heads = "tensor" if q.shape[2] % sizes["tensor"] == 0 else None
    tokens = P(rows, None, heads)
    return jax.shard_map(
        functools.partial(run, grid=grid),
        in_specs=(tokens, tokens, tokens, P(heads), P(rows)),
        out_specs=tokens,
        check_vma=False,  # the interpreter of the kernels does not track it
    )(q, k, v, tables, key_mask)


def _attend(q, k, v, tables, key_mask, *, scale, null_keys, causal, block, grid):
    queries, keys = q.shape[1], k.shape[1] - null_keys
    if grid is None:
        blocks = Blocks(*(min(block, _whole(tokens, LANES)) for tokens in (queries, keys)))
        query_layout = functools.partial(_pad_to, multiple=blocks.queries)
        key_layout = functools.partial(_pad_to, multiple=blocks.keys)
        tiles = None
    else:
        blocks = _biased_blocks(grid, block)
        tiles = _tiles_of(*tables, grid, block)
        query_layout = key_layout = functools.partial(_pad_frames, grid=grid, blocks=blocks)
    visible = jnp.ones((1, keys), bool) if key_mask is None else key_mask
    # Padding weighs nothing even where every real key is hidden.
    hidden = key_layout(jnp.where(visible, 0.0, LOWEST)[..., None], value=-jnp.inf)
    hidden = jnp.broadcast_to(hidden, (q.shape[0], *hidden.shape[1:]))  # [batch, keys, 1]
    if key_mask is None and hidden.shape[1] == keys:
        hidden = None
    real = slice(null_keys, None)
    out, norm = flash(
        _transposed(query_layout(q)),
        _transposed(key_layout(k[:, real])),
        _transposed(key_layout(v[:, real])),
        tiles,
        hidden,
        scale,
        causal,
        blocks,
    )
    out = rearrange(out, "b h d n -> b n h d")
    norm = rearrange(norm, "b h 1 n -> b n h 1")
    if grid is None:
        out, norm = out[:, :queries], norm[:, :queries]
    else:
        out, norm = (_crop_frames(x, grid, blocks) for x in (out, norm))
    if null_keys == 0:
        return out
    return _with_null_keys(q, k[:, :null_keys], v[:, :null_keys], out, norm, scale)


def _with_null_keys(q, k, v, out, norm, scale):
    """Equation (1); norm [batch, queries, heads, 1]."""
    logits = scale * jnp.einsum("bqhd,bkhd->bqhk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.concatenate([norm, logits], -1), axis=-1)
    null = jnp.einsum("bqhk,bkhd->bqhd", weights[..., 1:], v.astype(jnp.float32))
    return (weights[..., :1] * out + null).astype(v.dtype)


def with_tiles(bias: RelativeBias, *, block: int = BLOCK) -> RelativeBias:
    """The bias with what the kernel reads of it, packed tiles of padded frames, [heads, offsets,
    F', pack F']: made once for all layers that share it. `block` as in `attend_flash`."""
    tiles = _expanded(jax.lax.stop_gradient(bias.table), bias.grid, block)
    return RelativeBias(bias.table, bias.grid, tiles)


def _expanded(table: jax.Array, grid: tuple[int, int, int], block: int) -> jax.Array:
    blocks = _biased_blocks(grid, block)
    missing = _whole(grid[0], blocks.frames) - grid[0]
    rows = jnp.swapaxes(expand_rows(table.astype(jnp.float32)), 2, 3)  # [h, 2T-1, key, query]
    spare = (0, blocks.frame - math.prod(grid[1:]))
    tiles = jnp.pad(rows, ((0, 0), (missing, missing), spare, spare))
    return pack_tiles(tiles, blocks.pack)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tiles_of(table, tiles, grid, block):
    """The tiles, as a function of the table: what devices sum of a gradient is then as small as the
    table, and not as large as the tiles."""
    return tiles


def _tiles_of_fwd(table, tiles, grid, block):
    return tiles, table


def _tiles_of_bwd(grid, block, table, gradient):
    (of_table,) = jax.linear_transpose(lambda t: _expanded(t, grid, block), table)(gradient)
    return of_table, None


_tiles_of.defvjp(_tiles_of_fwd, _tiles_of_bwd)


def _biased_blocks(grid: tuple[int, int, int], block: int) -> Blocks:
    """Blocks of whole frames."""
    frame, frames = _frame_blocks(math.prod(grid[1:]), block)
    tokens = frame * frames
    return Blocks(tokens, tokens, frame, frames, LANES // frame if frame < LANES else 1)


def _frame_blocks(frame_tokens: int, block: int) -> tuple[int, int]:
    """Padded tokens of a frame and frames of a block."""
    frame = SMALL_FRAME if frame_tokens <= SMALL_FRAME else _whole(frame_tokens, LANES)
    return frame, max(1, block // frame)


def _whole(count: int, multiple: int) -> int:
    """`count` rounded up."""
    return -(-count // multiple) * multiple


def _pad_to(x, multiple, value=0.0):
    """[batch, n, ...] padded along n."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, _whole(x.shape[1], multiple) - x.shape[1])
    return jnp.pad(x, padding, constant_values=value)


def _pad_frames(x, grid, blocks, value=0.0):
    """[batch, T H W, ...] -> [batch, T' F', ...]."""
    x = x.reshape(x.shape[0], grid[0], -1, *x.shape[2:])
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, _whole(grid[0], blocks.frames) - grid[0])
    padding[2] = (0, blocks.frame - x.shape[2])
    x = jnp.pad(x, padding, constant_values=value)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _crop_frames(x, grid, blocks):
    """Undo `_pad_frames`."""
    frames = x.reshape(x.shape[0], -1, blocks.frame, *x.shape[2:])
    real = frames[:, : grid[0], : grid[1] * grid[2]]
    return real.reshape(x.shape[0], math.prod(grid), *x.shape[2:])


def _transposed(x):
    return rearrange(x, "b n h d -> b h d n")
