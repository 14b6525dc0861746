"""Two steps find the same index as one, whatever the values are."""

import jax.numpy as jnp
import numpy as np
import pytest

from gct_jax.kernels.argmax import BLOCK, FEWEST_BLOCKS, argmax

MANY = FEWEST_BLOCKS * BLOCK


@pytest.mark.parametrize("n", [1, 5, BLOCK, MANY - BLOCK, MANY, 2 * MANY, 2 * MANY + 1])
def test_any_number_of_values(n):
    x = np.random.default_rng(n).normal(size=(3, 4, n)).astype(np.float32)
    found = argmax(jnp.asarray(x))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, x.argmax(-1))


def test_of_equal_values_the_first():
    x = np.random.default_rng(0).integers(0, 3, size=(50, MANY)).astype(np.float32)
    np.testing.assert_array_equal(argmax(jnp.asarray(x)), x.argmax(-1))
    np.testing.assert_array_equal(argmax(jnp.full((2, MANY), -jnp.inf)), [0, 0])
