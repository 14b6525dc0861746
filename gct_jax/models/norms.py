"""Layer normalisation over rows."""

from typing import Any

import jax
from flax import linen as nn


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` over the last axis, with the leading axes joined.

    The gradients of gain and bias are sums over all rows. XLA's CPU backend takes three to five
    times as long for them over several axes, one of length 1 included, as over one.
    """

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        """[..., n] -> the same."""
        rows: jax.Array = super().__call__(x.reshape(-1, x.shape[-1]), mask=mask)
        return rows.reshape(x.shape)
