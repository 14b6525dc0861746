"""Convolutions with a filter gradient that is fast on a CPU.

For y = conv(x, w) with windows of n x n, zeros around the image and g the gradient of y,

    dw[i, j] = sum over r, c of x[r + i - p, c + j - p]^T g[r, c],   p = (n - 1) // 2       (1)

is a product of two matrices, [n channels, pixels] and [pixels, n features], of x shifted by columns
and g shifted by rows. XLA's CPU backend takes it for a convolution with a window as large as the
image, at a quarter to a third of the speed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gct_jax.kernels.target import target_platform

BAND_PIXELS = 2048  # of one product: its operands then stay in the processor's cache
FEWEST_CHANNELS = 64  # with 16 to 32 the copies cost more than the product gains
LARGEST_WINDOW = 7  # beyond it the program grows by more than it gains


def convolution(
    x: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """The `conv_general_dilated` of a Flax layer on images [batch, height, width, channels], not
    dilated and not in groups."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    height, width, *channels = kernel.shape
    square = height == width and 1 < width <= LARGEST_WINDOW and width % 2
    keeps_size = padding == "SAME" and set(window_strides) == {1}
    wide = min(channels) >= FEWEST_CHANNELS
    if not (square and keeps_size and wide and target_platform() == "cpu"):
        return convolve(x, kernel)

    @jax.custom_vjp
    def call(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
        return call(x, kernel), (x, kernel)

    def backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = saved
        (of_x,) = jax.linear_transpose(lambda x: convolve(x, kernel), x)(gradient)
        return of_x, filter_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype)

    call.defvjp(forward, backward)
    return call(x, kernel)


def filter_gradient(x: jax.Array, gradient: jax.Array, window: int) -> jax.Array:
    """Equation (1), one band of rows after the other, summed in float32.

    Args:
      x: [batch, height, width, channels]. gradient: [batch, height, width, features].
      window: n, odd.

    Returns:
      [n, n, channels, features] float32.
    """
    batch, height, width, channels = x.shape
    features, around = gradient.shape[-1], window // 2
    fitting = max(1, min(height, BAND_PIXELS // (batch * width)))
    rows = next(rows for rows in range(fitting, 0, -1) if height % rows == 0)
    x = jnp.pad(x, ((0, 0), (0, 0), (around, around), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (around, around), (0, 0), (0, 0)))

    def add_band(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
        # Columns are shifted in x, rows in the gradient: n + n copies instead of n n.
        pixels = lax.dynamic_slice_in_dim(x, first, rows, axis=1)
        near = lax.dynamic_slice_in_dim(gradient, first, rows + 2 * around, axis=1)
        across = [pixels[:, :, j : j + width] for j in range(window)]
        down = [near[:, 2 * around - i : 2 * around - i + rows] for i in range(window)]
        left, right = (
            jnp.concatenate(shifted, axis=-1).reshape(batch * rows * width, -1)
            for shifted in (across, down)
        )
        return total + jnp.matmul(left.T, right, preferred_element_type=jnp.float32), None

    start = jnp.zeros((window * channels, window * features), jnp.float32)
    total, _ = lax.scan(add_band, start, jnp.arange(0, height, rows))
    return total.reshape(window, channels, window, features).transpose(2, 0, 1, 3)
