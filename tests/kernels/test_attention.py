"""Attention against its definition in NumPy, and the backends against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.errors import ConfigError, InputError
from gct_jax.kernels.attention import attention
from gct_jax.kernels.bias import RelativeBias, bias_matrix

HEADS, DIM_HEAD = 2, 3


def arrays(batch, queries, keys, grid=None, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.normal(size=(batch, n, HEADS, DIM_HEAD)).astype(np.float32)
        for n in (queries, keys, keys)
    )
    table = None
    if grid is not None:
        table = rng.normal(size=(HEADS, *(2 * n - 1 for n in grid))).astype(np.float32)
    return q, k, v, table


def pair_bias(table, grid):
    """bias[h, i, j] looked up pair by pair."""
    positions = np.array(list(np.ndindex(*grid)))
    n = len(positions)
    bias = np.zeros((HEADS, n, n))
    for i in range(n):
        for j in range(n):
            offset = positions[i] - positions[j] + np.array(grid) - 1
            bias[:, i, j] = table[(slice(None), *offset)]
    return bias


def definition(q, k, v, scale, bias, null_keys, key_mask, causal):
    logits = scale * np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k)
    if bias is not None:
        logits[..., null_keys:] += bias
    for b, i, j in np.ndindex(q.shape[0], q.shape[1], k.shape[1] - null_keys):
        if (key_mask is not None and not key_mask[b, j]) or (causal and j > i):
            logits[b, :, i, null_keys + j] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


# (queries, keys without null keys, grid, null keys, mask, causal)
CASES = {
    "plain": (5, 7, None, 0, False, False),
    "frames": (24, 24, (3, 2, 4), 0, False, False),
    "one_frame": (12, 12, (1, 4, 3), 0, True, False),
    "null_and_mask": (5, 6, None, 2, True, False),
    "bias_and_null": (12, 12, (3, 2, 2), 2, True, False),
    "causal": (9, 9, None, 1, False, True),
    "several_chunks": (300, 300, None, 1, True, True),
}


@pytest.mark.parametrize("backend", ["dense", "batched", "unrolled", "chunked"])
@pytest.mark.parametrize("name", CASES)
def test_definition(name, backend):
    queries, keys, grid, null_keys, masked, causal = CASES[name]
    q, k, v, table = arrays(2, queries, null_keys + keys, grid)
    mask = np.arange(keys) < np.array([[keys], [keys - 2]]) if masked else None
    options = {"scale": 1.7, "null_keys": null_keys, "key_mask": mask, "causal": causal}
    bias = None if grid is None else RelativeBias(jnp.asarray(table), grid)
    actual = quick_jit(functools.partial(attention, **options, bias=bias, backend=backend))(q, k, v)
    pairs = None if grid is None else pair_bias(table, grid)
    expected = definition(q, k, v, bias=pairs, **options)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("grid", [(4, 2, 3), (1, 3, 4)])
def test_backends_have_equal_gradients(grid):
    n = np.prod(grid)
    q, k, v, table = arrays(2, n, n + 1, grid, seed=1)
    mask = np.arange(n) < np.array([[n], [n - 3]])

    @functools.partial(quick_jit, static_argnames="backend")
    def gradients(q, k, v, table, backend):
        def loss(q, k, v, table):
            bias = RelativeBias(table, grid)
            out = attention(
                q, k, v, scale=2.0, bias=bias, null_keys=1, key_mask=mask, backend=backend
            )
            return jnp.sum(jnp.sin(3 * out))

        return jax.grad(loss, (0, 1, 2, 3))(q, k, v, table)

    dense = gradients(q, k, v, table, "dense")
    assert all(float(jnp.max(jnp.abs(a))) > 0.05 for a in dense)
    for backend in ("batched", "unrolled", "chunked"):
        for a, b in zip(dense, gradients(q, k, v, table, backend), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_bias_matrix_is_the_table_pair_by_pair():
    grid = (2, 3, 2)
    table = arrays(1, 1, 1, grid)[3]
    actual = bias_matrix(RelativeBias(jnp.asarray(table), grid))
    np.testing.assert_array_equal(actual, pair_bias(table, grid).astype(np.float32))


def training_memory(frames, backend):
    """Bytes of scratch memory of a compiled forward and backward pass."""
    grid = (frames, 4, 4)
    qkv = jax.ShapeDtypeStruct((1, frames * 16, HEADS, DIM_HEAD), jnp.float32)
    table = jax.ShapeDtypeStruct((HEADS, 2 * frames - 1, 7, 7), jnp.float32)

    def loss(q, k, v, table):
        bias = RelativeBias(table, grid)
        return jnp.sum(attention(q, k, v, scale=1.0, bias=bias, backend=backend) ** 2)

    compiled = quick_jit(jax.grad(loss, (0, 1, 2, 3))).lower(qkv, qkv, qkv, table).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_chunked_memory_is_linear_in_frames():
    assert training_memory(32, "chunked") < 2.2 * training_memory(16, "chunked")
    assert training_memory(16, "dense") > 3.5 * training_memory(8, "dense")


def test_a_row_without_visible_keys_is_finite():
    q, k, v, _ = arrays(1, 2, 3)
    out = attention(q, k, v, scale=1.0, key_mask=np.zeros((1, 3), bool))
    np.testing.assert_allclose(out[:, 0], np.mean(v, axis=1), atol=1e-6)


def test_bfloat16_inputs_keep_a_float32_softmax():
    q, k, v = (a.astype(jnp.bfloat16) for a in arrays(1, 4, 600)[:3])
    out = attention(q, k, v, scale=1.0)
    assert out.dtype == jnp.bfloat16
    exact = definition(*(a.astype(np.float32) for a in (q, k, v)), 1.0, None, 0, None, False)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=5e-3)


def test_contradictions_are_refused():
    q, k, v, table = arrays(1, 8, 8, (2, 2, 2))
    with pytest.raises(ConfigError, match="backend 'fast'"):
        attention(q, k, v, scale=1.0, backend="fast")
    with pytest.raises(InputError, match=r"grid \(2, 2, 2\) does not fit 8 queries and 7 keys"):
        attention(q, k, v, scale=1.0, null_keys=1, bias=RelativeBias(table, (2, 2, 2)))
    with pytest.raises(InputError, match="key_mask has 8 columns for 7 keys"):
        attention(q, k, v, scale=1.0, null_keys=1, key_mask=np.ones((1, 8), bool))
