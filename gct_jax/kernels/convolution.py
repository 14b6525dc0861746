"""Convolutions that are fast on a CPU, and so are their gradients.

3x3 windows take the fewer multiplications of `winograd`. A 2x2 window of stride 2 is a product of
two matrices, [pixels / 4, 4 channels] and [4 channels, features], which XLA's CPU backend computes
twice as fast as the convolution.

For y = conv(x, w) with windows of n x n, zeros around the image and g the gradient of y,

    dw[i, j] = sum over r, c of x[r + i - p, c + j - p]^T g[r, c],   p = (n - 1) // 2       (1)

is a product of two matrices, [n channels, pixels] and [pixels, n features], of x shifted by columns
and g shifted by rows. XLA's CPU backend takes it for a convolution with a window as large as the
image, at a quarter to a third of the speed. The gradient of x is the convolution of g with the
turned window. Where x has few channels, all n n shifts of it side by side are no wider than other
images are, and dw is the product of those with g, which is not shifted. Where g has few, the same
holds with x and g exchanged:

    dw[i, j] = sum over r, c of x[r, c]^T g[r - i + p, c - j + p]                           (2)

A depthwise 3x3x3 convolution is a sum of 27 shifted arrays; of its filter,

    dw[i, j, k] = sum over t, r, c of x[t + i - past, r + j - 1, c + k - 1] g[t, r, c]       (3)

is 27 sums over two arrays, which are read from memory once if all 27 are taken frame by frame.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Float

from gct_jax.array_types import Array, Volume
from gct_jax.kernels.bilinear import bilinear
from gct_jax.kernels.linear import matrix_product
from gct_jax.kernels.scheduling import largest_divisor
from gct_jax.kernels.target import target_platform
from gct_jax.kernels.winograd import OUTPUTS, winograd_convolution

BAND_PIXELS = 2048  # of one product: its operands then stay in the processor's cache
FEWEST_CHANNELS = 64  # with 16 to 32 the copies cost more than the product gains
WINOGRAD_CHANNELS = 128  # with 64 its copies cost what its products gain, or more
FEWEST_TILES = 256  # with fewer, transforming the window costs more than is gained
NARROW_CHANNELS = 4  # up to which equation (2) has the faster filter gradient
LARGEST_WINDOW = 7  # of wide images; beyond it the program grows by more than it gains
WINDOW = tuple(itertools.product(range(3), repeat=3))


def convolution(
    x: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """The `conv_general_dilated` of a Flax layer on images [batch, height, width, channels], not
    dilated and not in groups."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    if target_platform() != "cpu" or padding != "SAME" or x.dtype != kernel.dtype:
        return convolve(x, kernel)
    height, width, *channels = kernel.shape
    if height == width == 2 and _halves(x.shape, window_strides):
        return halving(x, kernel)
    if height != width or width == 1 or width % 2 == 0 or set(window_strides) != {1}:
        return convolve(x, kernel)
    if min(channels) <= NARROW_CHANNELS:
        of_filter, faster = narrow_filter_gradient, _plain
    elif min(channels) >= FEWEST_CHANNELS and width <= LARGEST_WINDOW:
        of_filter = filter_gradient
        faster = _winograd if _winograd_pays(x.shape, kernel.shape) else _plain
    else:
        return convolve(x, kernel)
    stated = tuple(options.items())
    y: jax.Array = _fast(
        x, kernel, window=width, faster=faster, of_filter=of_filter, options=stated
    )
    return y


def _plain(x: jax.Array, kernel: jax.Array, options: tuple) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **dict(options))


def _winograd(x: jax.Array, kernel: jax.Array, options: tuple) -> jax.Array:
    del options
    return winograd_convolution(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array, faster: Any, options: tuple, **_: Any) -> jax.Array:
    y: jax.Array = faster(x, kernel, options)
    return y


def _of_x(
    gradient: jax.Array, kernel: jax.Array, faster: Any, options: tuple, **_: Any
) -> jax.Array:
    dx: jax.Array = faster(gradient, kernel[::-1, ::-1].swapaxes(2, 3), options)
    return dx


def _of_kernel(
    x: jax.Array, gradient: jax.Array, window: int, of_filter: Any, **_: Any
) -> jax.Array:
    dw: jax.Array = of_filter(x, gradient, window).astype(x.dtype)
    return dw


_fast = bilinear("fast_convolution", _forward, _of_x, _of_kernel)


def halving(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "2 2 inputs features"]
) -> Float[Array, "batch half_height half_width features"]:
    """Convolution of stride 2 of images [b, h, w, c], sides even, and a kernel [2, 2, c, f]:
    [b, h / 2, w / 2, f]."""
    pixels = rearrange(x, "b (h r) (w s) c -> b h w (r s c)", r=2, s=2)
    return matrix_product(pixels, rearrange(kernel, "r s c f -> (r s c) f"))


def _halves(image_shape: tuple[int, ...], strides: Any) -> bool:
    return set(strides) == {2} and not any(side % 2 for side in image_shape[1:3])


def _winograd_pays(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    batch, height, width, _ = image_shape
    return (
        kernel_shape[0] == 3
        and min(kernel_shape[2:]) >= WINOGRAD_CHANNELS
        and height % OUTPUTS == 0
        and width % OUTPUTS == 0
        and batch * height * width >= FEWEST_TILES * OUTPUTS**2
    )


def depthwise(
    x: Volume,
    kernel: Float[Array, "kt kh kw channels"],
    bias: Float[Array, "channels"],
    past: int,
) -> Volume:
    """Depthwise 3x3x3 convolution with zeros around, as a sum of shifted arrays: XLA's grouped
    convolution takes a hundred times longer on a CPU. Summed in float32.

    x: [batch, time, height, width, dim]. kernel: [3, 3, 3, dim]. bias: [dim].
    past: how many of its three frames come before the present one.
    """
    return _depthwise(x, kernel, bias, past, target_platform() == "cpu")


def _add_shifted(x: jax.Array, kernel: jax.Array, bias: Any, past: int) -> jax.Array:
    _, frames, height, width, _ = x.shape
    padded = _with_margin(x, past)
    y = jnp.broadcast_to(jnp.asarray(bias, jnp.float32), x.shape)
    for i, j, k in WINDOW:
        near = padded[:, i : i + frames, j : j + height, k : k + width]
        y += near.astype(jnp.float32) * kernel[i, j, k].astype(jnp.float32)
    return y.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _depthwise(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, past: int, by_frame: bool
) -> jax.Array:
    return _add_shifted(x, kernel, bias, past)


@_depthwise.defjvp
def _depthwise_jvp(
    past: int, by_frame: bool, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    # The bias is in the sum, which makes it affine; its derivatives are bilinear.
    (x, kernel, bias), (dx, dkernel, dbias) = primals, tangents
    of_bias = jnp.broadcast_to(dbias.astype(jnp.float32), x.shape).astype(x.dtype)
    static = {"past": past, "kernel_dtype": kernel.dtype, "by_frame": by_frame}
    dy = _shifted(dx, kernel, **static) + _shifted(x, dkernel, **static) + of_bias
    return _add_shifted(x, kernel, bias, past), dy


def _shift(x: jax.Array, kernel: jax.Array, past: int, **_: Any) -> jax.Array:
    return _add_shifted(x, kernel, 0.0, past)


def _shift_of_x(gradient: jax.Array, kernel: jax.Array, past: int, **_: Any) -> jax.Array:
    # What x[t] adds to y[t + 1], y[t + 1] takes from the place before it: both turn around.
    return _add_shifted(gradient, jnp.flip(kernel, (0, 1, 2)), 0.0, 2 - past)


def _shift_of_kernel(
    x: jax.Array, gradient: jax.Array, past: int, kernel_dtype: Any, by_frame: bool
) -> jax.Array:
    # One frame after the other takes longer anywhere but on a CPU.
    frames = 1 if by_frame else x.shape[1]
    return depthwise_filter_gradient(x, gradient, past, frames).astype(kernel_dtype)


_shifted = bilinear("shifted_sum", _shift, _shift_of_x, _shift_of_kernel)


def depthwise_filter_gradient(
    x: jax.Array, gradient: jax.Array, past: int, together: int = 1
) -> jax.Array:
    """Equation (3) of x and gradient [batch, time, height, width, dim]: [3, 3, 3, dim] float32.

    together: frames at a time, which divides their number.
    """
    _, frames, height, width, dim = x.shape
    padded = _with_margin(x, past)

    def sums(first: Any) -> jax.Array:
        near = lax.dynamic_slice_in_dim(padded, first, together + 2, axis=1)
        present = lax.dynamic_slice_in_dim(gradient, first, together, axis=1)
        near, present = near.astype(jnp.float32), present.astype(jnp.float32)
        return jnp.stack(
            [
                jnp.sum(
                    (near[:, i : i + together, j : j + height, k : k + width] * present).reshape(
                        -1, dim
                    ),
                    axis=0,
                    dtype=jnp.float32,
                )
                for i, j, k in WINDOW
            ]
        )

    if together == frames:
        return sums(0).reshape(3, 3, 3, dim)
    start = jnp.zeros((len(WINDOW), dim), jnp.float32)
    total, _ = lax.scan(
        lambda total, first: (total + sums(first), None), start, jnp.arange(0, frames, together)
    )
    return total.reshape(3, 3, 3, dim)


def _with_margin(x: jax.Array, past: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (past, 2 - past), (1, 1), (1, 1), (0, 0)))


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
    rows = largest_divisor(height, BAND_PIXELS // (batch * width))
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


def narrow_filter_gradient(x: jax.Array, gradient: jax.Array, window: int) -> jax.Array:
    """As `filter_gradient`, by equation (2), for few channels or few features."""
    if x.shape[-1] > gradient.shape[-1]:
        turned = narrow_filter_gradient(gradient, x, window)
        return jnp.flip(turned, (0, 1)).swapaxes(2, 3)
    batch, height, width, channels = x.shape
    features, around = gradient.shape[-1], window // 2
    rows = largest_divisor(height, BAND_PIXELS // (batch * width))
    x = jnp.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))

    def add_band(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
        near = lax.dynamic_slice_in_dim(x, first, rows + 2 * around, axis=1)
        here = lax.dynamic_slice_in_dim(gradient, first, rows, axis=1)
        across = jnp.concatenate([near[:, :, j : j + width] for j in range(window)], axis=-1)
        windows = jnp.concatenate([across[:, i : i + rows] for i in range(window)], axis=-1)
        left, right = (part.reshape(batch * rows * width, -1) for part in (windows, here))
        return total + jnp.matmul(left.T, right, preferred_element_type=jnp.float32), None

    start = jnp.zeros((window**2 * channels, features), jnp.float32)
    total, _ = lax.scan(add_band, start, jnp.arange(0, height, rows))
    return total.reshape(window, window, channels, features)
