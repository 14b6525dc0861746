"""Order and portions of computations."""

import jax
import jax.numpy as jnp
import pytest

from gct_jax.kernels.scheduling import after, largest_divisor


@pytest.mark.parametrize("number", range(1, 40))
@pytest.mark.parametrize("at_most", [-3, 0, 1, 5, 12, 100])
def test_largest_divisor(number, at_most):
    divisors = [n for n in range(1, number + 1) if number % n == 0 and n <= max(1, at_most)]
    assert largest_divisor(number, at_most) == max(divisors)


def test_after_is_the_value_in_its_own_precision_and_depends_on_what_came_before():
    value, earlier = jnp.arange(4, dtype=jnp.bfloat16), jnp.full((2, 3), 7.0)
    found = jax.jit(after)(value, earlier)
    assert found.dtype == value.dtype
    assert (found == value).all()
    # Compiled, it still reads the other array.
    assert jnp.isnan(jax.jit(after)(value, earlier * jnp.inf)).all()
