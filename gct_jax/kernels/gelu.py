"""The Gaussian error linear unit (Hendrycks & Gimpel 2016), by the error function:

    gelu(x) = x (1 + erf(x / sqrt(2))) / 2                                              (1)

PyTorch computes the same.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from gct_jax.array_types import Array


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Equation (1), computed in float32 and returned in the type of `x`.

    `jax.nn.gelu` takes the complementary error function, which is exact in relative terms where the
    result vanishes. Nothing depends on that here, and a CPU needs three times as long for it and
    twice for its gradient.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
