"""Flash attention for TPUs (Dao 2023, "FlashAttention-2") with a bias read tile by tile.

With logits s, a row's normaliser L and a gradient g of the output o, ell of L:

    L_i = log sum_j exp(s_ij),   p_ij = exp(s_ij - L_i),   o_i = sum_j p_ij v_j             (1)
    delta_i = <g_i, o_i> - ell_i,   ds_ij = p_ij (<g_i, v_j> - delta_i)                     (2)
    dv_j = sum_i p_ij g_i,   dk_j = scale sum_i ds_ij q_i,   dq_i = scale sum_j ds_ij k_j   (3)

Everything is held transposed, tokens along the lanes: q, k, v, o [batch, heads, dim, tokens] and
logits [keys, queries]. Rows of L and delta then lie along the lanes too, and heads narrower than
a vector register waste nothing.

Tokens come in frames of F. The bias of query frame a and key frame b is the tile a - b of
[keys, queries] (`pack_tiles`); all tiles of a head stay in on-chip memory while its blocks of
`frames` x `frames` tiles are computed, and so does their gradient, the sum of ds over all pairs
with the same offset. Outside a TPU the kernels run in Pallas' interpreter, which is for tests.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from gct_jax.kernels.pallas_tpu import NN, NT, TN, dot, run_kernel

LANES = 128
LOWEST = float(jnp.finfo(jnp.float32).min)  # logit of a hidden key; of padding: -inf


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the logits are cut: blocks of `keys` x `queries`; with a bias, both are `frames` frames
    of `frame` tokens, `pack` of them side by side in a tile."""

    queries: int
    keys: int
    frame: int = 0
    frames: int = 0
    pack: int = 1


def pack_tiles(tiles: Array, pack: int) -> Array:
    """Tiles by frame offset -(T-1) .. T-1 of [keys, queries], made a whole vector register wide.

    Args:
      tiles: [heads, 2T-1, F, F].

    Returns:
      [heads, 2T - pack, F, pack F]; entry i holds the offsets i, i + 1, .. side by side, which is
      one key frame against `pack` consecutive query frames.
    """
    count = tiles.shape[1] - pack + 1
    return jnp.concatenate([tiles[:, p : p + count] for p in range(pack)], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def flash(
    q: Array,
    k: Array,
    v: Array,
    tiles: Array | None,
    hidden: Array | None,
    scale: float,
    causal: bool,
    blocks: Blocks,
) -> tuple[Array, Array]:
    """Equation (1).

    Args:
      q: [batch, heads, dim, queries]; k, v: [batch, heads, dim, keys]; multiples of the blocks.
      tiles: [heads, offsets, F, pack F] float32 of `pack_tiles`, or None.
      hidden: [batch, keys, 1] float32: 0 for a visible key, otherwise its logit; or None.
      causal: key j is hidden from query i < j.

    Returns:
      o [batch, heads, dim, queries] in the type of v, L [batch, heads, 1, queries] float32.
    """
    out, norm = _forward(q, k, v, tiles, hidden, scale, causal, blocks)
    return out, norm


def _forward(q, k, v, tiles, hidden, scale, causal, blocks):
    batch, heads, dim, queries = q.shape
    grid = (heads, batch, queries // blocks.queries, k.shape[3] // blocks.keys)
    query, key = _token_specs(dim, blocks, query_axis=2)
    kernel = functools.partial(_forward_kernel, scale=scale, causal=causal, blocks=blocks)
    return _call(
        kernel,
        grid,
        {"q": (q, query), "k": (k, key), "v": (v, key)} | _extras(tiles, hidden, blocks, 3),
        {
            "out": (jax.ShapeDtypeStruct(q.shape, v.dtype), query),
            "norm": (_row_shape(q), _row_spec(blocks, 2)),
        },
        scratch={
            "acc": (dim, blocks.queries),
            "top": (1, blocks.queries),
            "sum": (1, blocks.queries),
        },
        sequential=1,
        products=2,
    )


def _flash_fwd(q, k, v, tiles, hidden, scale, causal, blocks):
    out, norm = _forward(q, k, v, tiles, hidden, scale, causal, blocks)
    return (out, norm), (q, k, v, tiles, hidden, out, norm)


def _flash_bwd(scale, causal, blocks, residuals, gradients):
    q, k, v, tiles, hidden, out, norm = residuals
    g, g_norm = gradients
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), 2, keepdims=True) - g_norm
    batch, heads, dim, queries = q.shape
    steps = queries // blocks.queries, k.shape[3] // blocks.keys
    options = {"scale": scale, "causal": causal, "blocks": blocks}

    def inputs(query_axis: int) -> dict[str, Any]:
        query, key = _token_specs(dim, blocks, query_axis)
        row = _row_spec(blocks, query_axis)
        extras = _extras(tiles, hidden, blocks, 5 - query_axis)
        tokens = {"q": (q, query), "k": (k, key), "v": (v, key), "g": (g, query)}
        return tokens | {"norm": (norm, row), "delta": (delta, row)} | extras

    query, _ = _token_specs(dim, blocks, 2)
    outputs = {"dq": (jax.ShapeDtypeStruct(q.shape, q.dtype), query)}
    if tiles is not None:
        outputs["dtiles"] = (jax.ShapeDtypeStruct(tiles.shape, jnp.float32), _tile_spec(tiles))
    dq, *dtiles = _call(
        functools.partial(_query_gradient_kernel, **options),
        (heads, batch, *steps),
        inputs(2),
        outputs,
        scratch={"acc": (dim, blocks.queries)},
        sequential=3 if tiles is not None else 1,
        products=3,
    )
    _, key = _token_specs(dim, blocks, 3)
    dk, dv = _call(
        functools.partial(_key_gradient_kernel, **options),
        (heads, batch, *steps[::-1]),
        inputs(3),
        {
            "dk": (jax.ShapeDtypeStruct(k.shape, k.dtype), key),
            "dv": (jax.ShapeDtypeStruct(v.shape, v.dtype), key),
        },
        scratch={"dk_acc": (dim, blocks.keys), "dv_acc": (dim, blocks.keys)},
        sequential=1,
        products=4,
    )
    # Which keys are hidden is no number to differentiate by.
    no_gradient = None if hidden is None else jnp.zeros_like(hidden)
    return dq, dk, dv, dtiles[0] if dtiles else None, no_gradient


flash.defvjp(_flash_fwd, _flash_bwd)


def _forward_kernel(refs, *, scale, causal, blocks):
    step, last = pl.program_id(3), pl.num_programs(3) - 1

    @pl.when(step == 0)
    def _():
        refs["top"][...] = jnp.full_like(refs["top"], -jnp.inf)
        refs["sum"][...] = jnp.zeros_like(refs["sum"])
        refs["acc"][...] = jnp.zeros_like(refs["acc"])

    s = _logits(refs, pl.program_id(2), step, scale, causal, blocks)
    top = jnp.maximum(refs["top"][...], s.max(0, keepdims=True))
    weights = jnp.exp(s - top)  # [keys, queries]
    fade = jnp.exp(refs["top"][...] - top)
    v = refs["v"][0, 0]
    refs["top"][...] = top
    refs["sum"][...] = fade * refs["sum"][...] + weights.sum(0, keepdims=True)
    refs["acc"][...] = fade * refs["acc"][...] + dot(v, weights.astype(v.dtype), NN)

    @pl.when(step == last)
    def _():
        out = refs["out"]
        out[0, 0] = (refs["acc"][...] / refs["sum"][...]).astype(out.dtype)
        refs["norm"][0, 0] = refs["top"][...] + jnp.log(refs["sum"][...])


def _query_gradient_kernel(refs, *, scale, causal, blocks):
    query_step, key_step = pl.program_id(2), pl.program_id(3)

    @pl.when(key_step == 0)
    def _():
        refs["acc"][...] = jnp.zeros_like(refs["acc"])

    _, ds = _weights_and_gradient(refs, query_step, key_step, scale, causal, blocks)
    k = refs["k"][0, 0]
    refs["acc"][...] += dot(k, ds.astype(k.dtype), NN)

    @pl.when(key_step == pl.num_programs(3) - 1)
    def _():
        refs["dq"][0, 0] = (scale * refs["acc"][...]).astype(refs["dq"].dtype)

    if "dtiles" in refs:

        @pl.when((pl.program_id(1) == 0) & (query_step == 0) & (key_step == 0))
        def _():
            refs["dtiles"][...] = jnp.zeros_like(refs["dtiles"])

        for index, rows, columns in _tiles_of_block(refs, query_step, key_step, blocks):
            refs["dtiles"][0, index] += ds[rows, columns]


def _key_gradient_kernel(refs, *, scale, causal, blocks):
    key_step, query_step = pl.program_id(2), pl.program_id(3)

    @pl.when(query_step == 0)
    def _():
        refs["dk_acc"][...] = jnp.zeros_like(refs["dk_acc"])
        refs["dv_acc"][...] = jnp.zeros_like(refs["dv_acc"])

    p, ds = _weights_and_gradient(refs, query_step, key_step, scale, causal, blocks)
    q, g = refs["q"][0, 0], refs["g"][0, 0]
    refs["dk_acc"][...] += dot(q, ds.astype(q.dtype), NT)
    refs["dv_acc"][...] += dot(g, p.astype(g.dtype), NT)

    @pl.when(query_step == pl.num_programs(3) - 1)
    def _():
        refs["dk"][0, 0] = (scale * refs["dk_acc"][...]).astype(refs["dk"].dtype)
        refs["dv"][0, 0] = refs["dv_acc"][...].astype(refs["dv"].dtype)


def _logits(refs, query_step, key_step, scale, causal, blocks):
    """s of one block, [keys, queries] float32."""
    s = scale * dot(refs["k"][0, 0], refs["q"][0, 0], TN)
    if "tiles" in refs:
        tiles = _tiles_of_block(refs, query_step, key_step, blocks)
        wide = [refs["tiles"][0, index] for index, _, _ in tiles]
        per_row = blocks.frames // blocks.pack
        rows = [jnp.concatenate(wide[i : i + per_row], 1) for i in range(0, len(wide), per_row)]
        s += jnp.concatenate(rows, 0)
    if causal:
        query = query_step * blocks.queries + lax.broadcasted_iota(jnp.int32, s.shape, 1)
        key = key_step * blocks.keys + lax.broadcasted_iota(jnp.int32, s.shape, 0)
        s = jnp.where(key <= query, s, LOWEST)
    if "hidden" in refs:
        hidden = refs["hidden"][0]  # [keys, 1]
        s = jnp.where(hidden < 0, hidden, s)
    return s


def _weights_and_gradient(refs, query_step, key_step, scale, causal, blocks):
    """p of equation (1) and ds of (2), both [keys, queries] float32."""
    s = _logits(refs, query_step, key_step, scale, causal, blocks)
    p = jnp.exp(s - refs["norm"][0, 0])
    weighted = dot(refs["v"][0, 0], refs["g"][0, 0], TN)
    return p, p * (weighted - refs["delta"][0, 0])


def _tiles_of_block(refs, query_step, key_step, blocks):
    """(entry of the packed tiles, rows, columns) of each tile of a block, row by row."""
    width = blocks.pack * blocks.frame
    zero = (refs["tiles"].shape[1] + blocks.pack) // 2 - 1  # entry of offset 0
    first = (query_step - key_step) * blocks.frames + zero
    return [
        (
            first + blocks.pack * column - row,
            slice(row * blocks.frame, (row + 1) * blocks.frame),
            slice(column * width, (column + 1) * width),
        )
        for row in range(blocks.frames)
        for column in range(blocks.frames // blocks.pack)
    ]


def _token_specs(dim, blocks, query_axis):
    """Block specs of queries and keys; the grid is (heads, batch, ...) with the queries' steps on
    axis `query_axis` and the keys' on the other one."""

    def spec(width, axis):
        return pl.BlockSpec((1, 1, dim, width), lambda h, b, *steps: (b, h, 0, steps[axis - 2]))

    return spec(blocks.queries, query_axis), spec(blocks.keys, 5 - query_axis)


def _row_spec(blocks, query_axis):
    return pl.BlockSpec(
        (1, 1, 1, blocks.queries), lambda h, b, *steps: (b, h, 0, steps[query_axis - 2])
    )


def _row_shape(q):
    return jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[3]), jnp.float32)


def _tile_spec(tiles):
    return pl.BlockSpec((1, *tiles.shape[1:]), lambda h, *_: (h, 0, 0, 0))


def _extras(tiles, hidden, blocks, key_axis):
    """The optional inputs and their block specs."""
    extras = {}
    if tiles is not None:
        extras["tiles"] = (tiles, _tile_spec(tiles))
    if hidden is not None:
        spec = pl.BlockSpec((1, blocks.keys, 1), lambda h, b, *steps: (b, steps[key_axis - 2], 0))
        extras["hidden"] = (hidden, spec)
    return extras


def _call(
    kernel: Callable[[dict[str, Any]], None],
    grid: tuple[int, ...],
    inputs: dict[str, tuple[Array, pl.BlockSpec]],
    outputs: dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    *,
    scratch: dict[str, tuple[int, int]],
    sequential: int,
    products: int,
) -> list[Array]:
    """Run a kernel over blocks of logits; `products`: matrix products of a block."""
    (queries, _), (keys, _) = inputs["q"], inputs["k"]
    logits = math.prod(queries.shape[:2]) * queries.shape[3] * keys.shape[3]
    return run_kernel(
        kernel,
        grid,
        inputs,
        outputs,
        scratch=scratch,
        sequential=sequential,
        work=(2 * products * logits * queries.shape[2], logits),
    )
