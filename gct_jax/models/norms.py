"""Norms: of layers over rows, and of vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Num

from gct_jax.array_types import Array


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` over the last axis, with the leading axes joined.

    The gradients of gain and bias are sums over all rows. XLA's CPU backend takes three to five
    times as long for them over several axes, one of length 1 included, as over one.
    """

    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        """[..., n] -> the same."""
        rows: jax.Array = super().__call__(x.reshape(-1, x.shape[-1]), mask=mask)
        return rows.reshape(x.shape)


def layer_norm(name: str | None, dtype: DTypeLike, use_bias: bool = True) -> LayerNorm:
    """Layer norm with a gain and, if wanted, a bias; statistics in float32."""
    return LayerNorm(
        epsilon=1e-5, use_bias=use_bias, use_fast_variance=False, dtype=dtype, name=name
    )


def l2_normalize(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / max(|x|, 1e-12) along the last axis in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))
