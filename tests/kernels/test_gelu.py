"""GELU against the normal distribution function of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gct_jax.kernels.gelu import gelu


def test_value_and_gradient():
    x = np.linspace(-9, 9, 1001)
    values, slopes = jax.vmap(jax.value_and_grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(values, x * norm.cdf(x), rtol=2e-7, atol=5e-7)
    np.testing.assert_allclose(slopes, norm.cdf(x) + x * norm.pdf(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_type(dtype):
    assert gelu(jnp.ones(3, dtype)).dtype == dtype
