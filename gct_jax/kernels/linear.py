"""Dense layers as products of two matrices, and what they take for a matrix."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array, Images
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


def as_positions(x: Images) -> Float[Array, "batch *positions channels"]:
    """A map [b, h, w, c] as positions [b, h w, c]; on a TPU, where columns may lie innermost and
    this would copy it, as it is."""
    return x if target_platform() == "tpu" else x.reshape(x.shape[0], -1, x.shape[-1])


def weighted_sum(
    weights: Float[Array, "batch *positions 1"], x: Float[Array, "batch *positions channels"]
) -> Float[Array, "batch channels"]:
    """Sum over the positions of what `as_positions` makes of a map."""
    if x.ndim > 3:
        return jnp.einsum("bhwo,bhwc->bc", weights, x)
    # As a row times a matrix: einsum would have XLA's CPU backend transpose the image first.
    return jnp.matmul(weights.swapaxes(1, 2), x)[:, 0]


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
