"""Chunks of the position bias against the whole matrix, which is tested pair by pair elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.kernels.bias import RelativeBias, bias_matrix, bias_tiles, tokens_per_chunk

HEADS = 2


def table_of(grid):
    shape = (HEADS, *(2 * n - 1 for n in grid))
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def chunk_rows(table, grid, chunk_tokens):
    """All chunks below one another, [heads, queries, keys]."""
    bias = RelativeBias(table, grid)
    tiles, size = bias_tiles(bias, chunk_tokens), tokens_per_chunk(bias, chunk_tokens)
    queries = int(np.prod(grid))
    chunks = [jnp.stack(tiles(jnp.int32(i))) for i in range(-(-queries // size))]
    return jnp.concatenate(chunks, axis=1)[:, :queries]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 12, 1000])
@pytest.mark.parametrize("grid", [(5, 2, 3), (1, 4, 3), (4, 1, 1)])
def test_chunks_are_rows_of_the_matrix_with_its_gradient(grid, chunk_tokens):
    table = table_of(grid)
    queries = int(np.prod(grid))
    weight = np.random.default_rng(1).normal(size=(HEADS, queries, queries)).astype(np.float32)

    def value_and_gradient(rows):
        return quick_jit(jax.value_and_grad(lambda t: jnp.vdot(weight, rows(t))))

    whole = value_and_gradient(lambda t: bias_matrix(RelativeBias(t, grid)))(table)
    parts = value_and_gradient(lambda t: chunk_rows(t, grid, chunk_tokens))(table)
    np.testing.assert_array_equal(
        chunk_rows(table, grid, chunk_tokens), bias_matrix(RelativeBias(table, grid))
    )
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], atol=2e-5)


@pytest.mark.parametrize(("chunk_tokens", "expected"), [(1, 6), (7, 12), (13, 18), (99, 30)])
def test_a_chunk_holds_whole_frames(chunk_tokens, expected):
    bias = RelativeBias(table_of((5, 2, 3)), (5, 2, 3))
    assert tokens_per_chunk(bias, chunk_tokens) == expected
