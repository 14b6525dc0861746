"""Attention of many positions to few tokens on a TPU, its logits in on-chip memory alone.

With positions x_i, and the keys K_hj and values V_hj of token j and head h, both folded with the
projections (`gct_jax.kernels.folded_attention`),

    s_hji = <K_hj, x_i>,   p_hji = softmax_j(s_hji),   o_i = sum_hj p_hji V_hj              (1)

and with the gradient g of o,

    d_hji = <V_hj, g_i>,   ds_hji = p_hji (d_hji - sum_j p_hji d_hji)                       (2)
    dx_i = sum_hj ds_hji K_hj,   dK_hj = sum_i ds_hji x_i,   dV_hj = sum_i p_hji g_i        (3)

Logits are held as [heads * tokens, positions]: a few dozen tokens then lie along the short side of
the vector registers and waste little, and the softmax of a head is one over some of the rows.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from gct_jax.kernels.pallas_tpu import run_kernel
from gct_jax.sharding import BATCH, splits_evenly

BLOCK = 1024  # positions at a time
ROWS = 16  # of a vector register of 16-bit numbers

TN = (((0,), (0,)), ((), ()))  # contract the rows of both factors
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))


def attend_folded(x: Array, keys: Array, values: Array, *, block: int = BLOCK) -> Array:
    """Equation (1), on each device of the current mesh for its own samples.

    Args:
      x: [batch, positions, channels].
      keys, values: [batch, heads, tokens, channels], the keys with the scale of the logits.
      block: positions at a time.

    Returns:
      [batch, positions, channels] in the type of `x`.
    """
    run = functools.partial(_attend, block=block)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return run(x, keys, values)
    rows = BATCH if splits_evenly(x.shape[0]) else P()
    # The interpreter of the kernels does not track which axes a value varies over.
    return jax.shard_map(run, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False)(
        x, keys, values
    )


def _attend(x: Array, keys: Array, values: Array, block: int) -> Array:
    _, positions, _ = x.shape
    block = min(block, -(-positions // ROWS) * ROWS)
    padded = jnp.pad(x, ((0, 0), (0, -positions % block), (0, 0)))
    tokens = keys.shape[2]
    spare = ((0, 0), (0, 0), (0, -tokens % ROWS), (0, 0))
    tables = (jnp.pad(table.astype(x.dtype), spare) for table in (keys, values))
    return _folded(padded, *tables, tokens, block)[:, :positions]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _folded(x: Array, keys: Array, values: Array, tokens: int, block: int) -> Array:
    batch, positions, _ = x.shape
    some, whole = _specs(x, keys, block)
    (out,) = run_kernel(
        functools.partial(_forward_kernel, tokens=tokens),
        (batch, positions // block),
        {"x": (x, some), "keys": (keys, whole), "values": (values, whole)},
        {"out": (jax.ShapeDtypeStruct(x.shape, x.dtype), some)},
        sequential=0,
        work=_work(x, keys, products=2),
    )
    return out


def _folded_fwd(x, keys, values, tokens, block):
    return _folded(x, keys, values, tokens, block), (x, keys, values)


def _folded_bwd(tokens, block, residuals, gradient):
    x, keys, values = residuals
    some, whole = _specs(x, keys, block)
    table = jax.ShapeDtypeStruct(keys.shape, jnp.float32), whole
    dx, dkeys, dvalues = run_kernel(
        functools.partial(_backward_kernel, tokens=tokens),
        (x.shape[0], x.shape[1] // block),
        {"x": (x, some), "g": (gradient, some), "keys": (keys, whole), "values": (values, whole)},
        {"dx": (jax.ShapeDtypeStruct(x.shape, x.dtype), some), "dkeys": table, "dvalues": table},
        sequential=1,
        work=_work(x, keys, products=5),
    )
    return dx, dkeys.astype(keys.dtype), dvalues.astype(values.dtype)


_folded.defvjp(_folded_fwd, _folded_bwd)


def _forward_kernel(refs: dict[str, Any], *, tokens: int) -> None:
    x, values = refs["x"][0], refs["values"][0]
    total = jnp.zeros(x.shape, jnp.float32)
    for head in range(values.shape[0]):
        weights = _weights(refs["keys"][0, head], x, tokens)
        total += _dot(weights.astype(x.dtype), values[head], TN)
    refs["out"][0] = total.astype(refs["out"].dtype)


def _backward_kernel(refs: dict[str, Any], *, tokens: int) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _():
        refs["dkeys"][...] = jnp.zeros_like(refs["dkeys"])
        refs["dvalues"][...] = jnp.zeros_like(refs["dvalues"])

    x, g = refs["x"][0], refs["g"][0]
    total = jnp.zeros(x.shape, jnp.float32)
    for head in range(refs["keys"].shape[1]):
        keys, values = refs["keys"][0, head], refs["values"][0, head]
        weights = _weights(keys, x, tokens)
        product = weights * _dot(values, g, NT)
        ds = (product - weights * product.sum(0, keepdims=True)).astype(x.dtype)
        refs["dkeys"][0, head] += _dot(ds, x, NN)
        refs["dvalues"][0, head] += _dot(weights.astype(g.dtype), g, NN)
        total += _dot(ds, keys, TN)
    refs["dx"][0] = total.astype(refs["dx"].dtype)


def _weights(keys: Array, x: Array, tokens: int) -> Array:
    """p of one head, [tokens, positions] float32; rows beyond `tokens` are 0."""
    s = _dot(keys, x, NT)
    if tokens < s.shape[0]:
        s = jnp.where(lax.broadcasted_iota(jnp.int32, s.shape, 0) < tokens, s, -jnp.inf)
    weights = jnp.exp(s - s.max(0, keepdims=True))
    return weights / weights.sum(0, keepdims=True)


def _dot(a: Array, b: Array, contraction: Any) -> Array:
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, contraction, precision=exact, preferred_element_type=jnp.float32)


def _specs(x: Array, keys: Array, block: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Blocks of some positions, and of all tokens, of a sample; the grid is (batch, steps)."""
    some = pl.BlockSpec((1, block, x.shape[2]), lambda b, step: (b, step, 0))
    return some, pl.BlockSpec((1, *keys.shape[1:]), lambda b, step: (b, 0, 0, 0))


def _work(x: Array, keys: Array, products: int) -> tuple[int, int]:
    logits = math.prod(x.shape[:2]) * math.prod(keys.shape[1:3])
    return 2 * products * logits * x.shape[2], logits
