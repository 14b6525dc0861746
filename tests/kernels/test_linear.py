"""Products of dense layers against the same products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gct_jax.kernels.linear import matrix_product


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_value_and_gradients_are_rounded_once(dtype, rounding):
    """Sums of 300 products; the sum of 300 numbers rounded to 8 bits would be far off."""
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.uniform(0.5, 1, size=size), dtype)
        for size in ((2, 150, 300), (300, 7), (2, 150, 7))
    )
    y, pull_back = jax.vjp(jax.jit(matrix_product), x, kernel)
    exact_x, exact_kernel, exact_weight = (np.asarray(a, np.float64) for a in (x, kernel, weight))
    expected = (
        exact_x @ exact_kernel,
        exact_weight @ exact_kernel.T,
        np.einsum("bni,bno->io", exact_x, exact_weight),
    )
    for found, exact in zip((y, *pull_back(weight)), expected, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=rounding)


def test_asked_for_in_float32():
    x = jnp.full((3, 5), 1.0078125, jnp.bfloat16)  # its square needs more than 8 bits
    y = matrix_product(x, x.T, preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.full((3, 3), 5 * 1.0078125**2, np.float32))
