"""Dense layers as products of two matrices."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array
from gct_jax.kernels.bilinear import bilinear
from gct_jax.kernels.target import target_platform


def linear(
    features: int,
    dtype: DTypeLike,
    name: str | None = None,
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init,
) -> nn.Dense:
    """Dense layer without a bias."""
    return nn.Dense(
        features,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        dot_general=matrix_product,
        name=name,
    )


def matrix_product(
    x: Float[Array, "*rows inputs"],
    kernel: Float[Array, "inputs features"],
    dimension_numbers: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Float[Array, "*rows features"]:
    """The `dot_general` of a dense layer, [..., n] and [n, m] -> [..., m].

    The leading axes of `x` are joined first: XLA's CPU gradients of a product of two matrices are
    up to twice as fast as those of the same product with more axes. `dimension_numbers` are what
    Flax asks for and hold nothing that the shapes do not say.
    """
    del dimension_numbers
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == jnp.bfloat16 and preferred_element_type is None and target_platform() == "cpu":
        y = bfloat16_product(rows, kernel)
    else:
        y = lax.dot_general(
            rows,
            kernel,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


_bfloat16_product = bilinear(
    "bfloat16_product",
    _product,
    lambda gradient, b: _product(gradient, b.T),
    lambda a, gradient: _product(a.T, gradient),
)


def bfloat16_product(
    a: Float[Array, "rows inputs"], b: Float[Array, "inputs features"]
) -> Float[Array, "rows features"]:
    """Product of two matrices in bfloat16, summed in float32 and then rounded, as are its
    gradients.

    Where the sum is not asked for in float32, XLA's CPU backend turns both matrices into float32
    first, and the processor's units for bfloat16, several times as fast, stay idle.
    """
    return _bfloat16_product(a, b)
