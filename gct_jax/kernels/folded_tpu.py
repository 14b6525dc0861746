"""Attention of many positions to few tokens on a TPU, its logits in on-chip memory alone.

With positions x_i, and the keys K_hj and values V_hj of token j and head h, both folded with the
projections (`gct_jax.kernels.folded_attention`),

    s_hji = <K_hj, x_i>,   p_hji = softmax_j(s_hji),   o_i = sum_hj p_hji V_hj              (1)

and with the gradient g of o,

    d_hji = <V_hj, g_i>,   ds_hji = p_hji (d_hji - sum_j p_hji d_hji)                       (2)
    dx_i = sum_hj ds_hji K_hj,   dK_hj = sum_i ds_hji x_i,   dV_hj = sum_i p_hji g_i        (3)

Positions come as rows of a map, [row, channel, column]: 64 channels then fill the vector registers.
Logits are held as [heads * tokens, columns], so that a few dozen tokens lie along the short side of
the registers and waste little, and the softmax of a head is one over some of the lines.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl

from gct_jax.kernels.pallas_tpu import NN, NT, TN, dot, on_own_samples, run_kernel
from gct_jax.kernels.scheduling import largest_divisor

POSITIONS = 2048  # at a time
LANES = 128
LINES = 16  # of a vector register of 16-bit numbers


def attend_folded(x: Array, keys: Array, values: Array) -> Array:
    """Equation (1), on each device of the current mesh for its own samples.

    Args:
      x: [batch, positions, channels], or a map [batch, height, width, channels].
      keys, values: [batch, heads, tokens, channels], the keys with the scale of the logits.

    Returns:
      An array like `x`.
    """
    return on_own_samples(_attend, x, keys, values)


def _attend(x: Array, keys: Array, values: Array) -> Array:
    batch, _, tokens, channels = keys.shape
    spare = ((0, 0), (0, 0), (0, -tokens % LINES), (0, 0))
    tables = (jnp.pad(table.astype(x.dtype), spare) for table in (keys, values))
    if x.ndim == 4 and x.shape[2] % LANES == 0:
        return jnp.swapaxes(_folded(jnp.swapaxes(x, 2, 3), *tables, tokens), 2, 3)
    positions = x.reshape(batch, -1, channels)
    count = positions.shape[1]
    positions = jnp.pad(positions, ((0, 0), (0, -count % LANES), (0, 0)))
    rows = rearrange(positions, "b (r w) c -> b r c w", w=LANES)
    out = rearrange(_folded(rows, *tables, tokens), "b r c w -> b (r w) c")
    return out[:, :count].reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _folded(x: Array, keys: Array, values: Array, tokens: int) -> Array:
    """x [b, r, c, w]; keys and values [b, heads, tokens and padding, c]."""
    grid, some, whole = _blocks(x, keys)
    (out,) = run_kernel(
        functools.partial(_forward_kernel, tokens=tokens),
        grid,
        {"x": (x, some), "keys": (keys, whole), "values": (values, whole)},
        {"out": (jax.ShapeDtypeStruct(x.shape, x.dtype), some)},
        sequential=0,
        work=_work(x, keys, products=2),
    )
    return out


def _folded_fwd(x, keys, values, tokens):
    return _folded(x, keys, values, tokens), (x, keys, values)


def _folded_bwd(tokens, residuals, gradient):
    x, keys, values = residuals
    grid, some, whole = _blocks(x, keys)
    table = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
    dx, dkeys, dvalues = run_kernel(
        functools.partial(_backward_kernel, tokens=tokens),
        grid,
        {"x": (x, some), "g": (gradient, some), "keys": (keys, whole), "values": (values, whole)},
        {
            "dx": (jax.ShapeDtypeStruct(x.shape, x.dtype), some),
            "dkeys": (table, whole),
            "dvalues": (table, whole),
        },
        sequential=1,
        work=_work(x, keys, products=5),
    )
    return dx, dkeys.astype(keys.dtype), dvalues.astype(values.dtype)


_folded.defvjp(_folded_fwd, _folded_bwd)


def _forward_kernel(refs: dict[str, Any], *, tokens: int) -> None:
    keys, values = (_lines(refs[name]) for name in ("keys", "values"))
    heads = refs["keys"].shape[1]
    for row in range(refs["x"].shape[1]):
        x = refs["x"][0, row]
        weights = _weights(dot(keys, x, NN), heads, tokens)
        refs["out"][0, row] = dot(values, weights.astype(x.dtype), TN).astype(x.dtype)


def _backward_kernel(refs: dict[str, Any], *, tokens: int) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _():
        refs["dkeys"][...] = jnp.zeros_like(refs["dkeys"])
        refs["dvalues"][...] = jnp.zeros_like(refs["dvalues"])

    keys, values = (_lines(refs[name]) for name in ("keys", "values"))
    _, heads, padded, channels = refs["keys"].shape
    for row in range(refs["x"].shape[1]):
        x, g = refs["x"][0, row], refs["g"][0, row]
        weights = _weights(dot(keys, x, NN), heads, tokens)
        product = (weights * dot(values, g, NN)).reshape(heads, padded, -1)
        shares = weights.reshape(product.shape)
        ds = (product - shares * product.sum(1, keepdims=True)).reshape(weights.shape)
        ds = ds.astype(x.dtype)
        refs["dx"][0, row] = dot(keys, ds, TN).astype(x.dtype)
        for name, a, b in (("dkeys", ds, x), ("dvalues", weights.astype(g.dtype), g)):
            refs[name][0] += dot(a, b, NT).reshape(heads, padded, channels)


def _lines(table: Any) -> Array:
    """[1, heads, tokens, channels] -> [heads * tokens, channels]."""
    array: Array = table[0]
    return array.reshape(-1, array.shape[-1])


def _weights(s: Array, heads: int, tokens: int) -> Array:
    """p of logits [heads * tokens, columns] float32; 0 in lines that pad the tokens."""
    s = s.reshape(heads, -1, s.shape[-1])
    if tokens < s.shape[1]:
        s = jnp.where(lax.broadcasted_iota(jnp.int32, s.shape, 1) < tokens, s, -jnp.inf)
    weights = jnp.exp(s - s.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights.reshape(-1, s.shape[-1])


def _blocks(x: Array, keys: Array) -> tuple[tuple[int, int], pl.BlockSpec, pl.BlockSpec]:
    """The grid (batch, steps), the blocks of some rows, and those of all tokens of a sample."""
    batch, rows, channels, width = x.shape
    together = largest_divisor(rows, max(1, POSITIONS // width))
    some = pl.BlockSpec((1, together, channels, width), lambda b, step: (b, step, 0, 0))
    whole = pl.BlockSpec((1, *keys.shape[1:]), lambda b, step: (b, 0, 0, 0))
    return (batch, rows // together), some, whole


def _work(x: Array, keys: Array, products: int) -> tuple[int, int]:
    logits = math.prod(keys.shape[:3]) * x.shape[1] * x.shape[3]
    return 2 * products * logits * x.shape[2], logits
