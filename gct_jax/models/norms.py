"""Norms: of layers over rows, and of vectors."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Num

from gct_jax.array_types import Array


def layer_norm(name: str | None, dtype: DTypeLike, use_bias: bool = True) -> nn.LayerNorm:
    """Layer norm with a gain and, if wanted, a bias; statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-5, use_bias=use_bias, use_fast_variance=False, dtype=dtype, name=name
    )


def l2_normalize(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / max(|x|, 1e-12) along the last axis in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))
