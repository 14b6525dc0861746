"""Dense layers as products of two matrices."""

from typing import Any

from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array


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
    y = lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        kernel,
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return y.reshape(*x.shape[:-1], kernel.shape[1])
