"""Layer normalisation with joined axes is Flax's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gct_jax.models.norms import LayerNorm


@pytest.mark.parametrize("shape", [(7, 12), (1, 5, 12), (2, 3, 2, 2, 12)])
@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"use_fast_variance": False}])
def test_same_as_over_several_axes(shape, options):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    ours, flax = LayerNorm(**options), nn.LayerNorm(**options)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        flax.init(jax.random.key(0), x),
    )
    assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(variables)

    def loss(variables, x, module):
        return jnp.sum(jnp.sin(module.apply(variables, x)))

    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-6)
    one, other = (jax.grad(loss, argnums=(0, 1))(variables, x, m) for m in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
