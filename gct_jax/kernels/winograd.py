"""3x3 convolution in a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016).

Four neighbouring outputs y of a window g of three over six inputs d are, like a product of
polynomials, determined by their values at six points p_0, ..., p_4 and infinity:

    y = A [ (G g) * (B d) ],   * element by element                                          (1)
    A[a, i] = p_i^a                         G[i, b] = p_i^b / prod_(l != i) (p_i - p_l)
    B[i, k] = coefficient of x^k in prod_(l != i) (x - p_l),   i < 5                         (2)
    A[3, 5] = G[5, 2] = 1                   B[5, k] = coefficient of x^k in prod_l (x - p_l)

and a tile of 4 x 4 outputs of a 3 x 3 window over 6 x 6 inputs

    Y = A [ (G g G^T) * (B D B^T) ] A^T                                                      (3)

in 36 multiplications instead of 144. Over channels each of the 36 is a product of two matrices,
[tiles, channels] and [channels, features]. With points 0, +-3/4, +-3/2 the rounding error is two to
three times that of the direct sum, half of what the usual 0, +-1, +-2 make it.

Only for CPUs, where those products are what takes the time.
"""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float
from numpy.polynomial import polynomial

from gct_jax.array_types import Array
from gct_jax.kernels.scheduling import after, largest_divisor

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # exact in binary
OUTPUTS, TILE = 4, 6  # of a tile along one side: outputs and inputs
BAND_TILES = 1024  # transformed at a time: they then stay in the processor's cache


def winograd_convolution(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "3 3 inputs features"]
) -> Float[Array, "batch height width features"]:
    """3x3 convolution of stride 1 with zeros around the image, equation (3).

    Args:
      x: [batch, height, width, channels], sides divisible by 4.
      kernel: [3, 3, channels, features].

    Returns:
      [batch, height, width, features] in the dtype of `x`, computed in float32. All of it is NaN
      if the very first element of `x` is not finite.
    """
    batch, height, width, _ = x.shape
    # Else XLA's CPU backend would transform all kernels of a network beforehand.
    weights = _transformed_kernel(after(kernel, x))
    rows = OUTPUTS * largest_divisor(height // OUTPUTS, BAND_TILES * OUTPUTS // (batch * width))
    if rows == height:
        return _convolve_band(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))), weights)

    def add_band(band: jax.Array, y: jax.Array) -> jax.Array:
        first = band * rows
        found = _convolve_band(_rows_with_margin(x, first, rows), weights)
        return lax.dynamic_update_slice_in_dim(y, found, first, axis=1)

    zeros = jnp.broadcast_to(after(jnp.zeros((), x.dtype), x), (*x.shape[:-1], kernel.shape[-1]))
    return lax.fori_loop(0, height // rows, add_band, zeros)


@functools.cache
def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [4, 6], G [6, 3] and B [6, 6] of equation (2), float64."""
    points = np.asarray(POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    outputs = np.zeros((OUTPUTS, TILE))
    outputs[:, :-1] = points ** np.arange(OUTPUTS)[:, None]
    outputs[-1, -1] = 1
    kernels = np.zeros((TILE, 3))
    kernels[:-1] = [p ** np.arange(3) / np.prod(p - o) for p, o in zip(points, others, strict=True)]
    kernels[-1, -1] = 1
    inputs = np.zeros((TILE, TILE))
    inputs[:-1, :-1] = [polynomial.polyfromroots(other) for other in others]
    inputs[-1] = polynomial.polyfromroots(points)
    return outputs, kernels, inputs


def _transformed_kernel(kernel: jax.Array) -> jax.Array:
    """G g G^T: [3, 3, channels, features] -> [6, 6, channels, features]."""
    _, matrix, _ = transforms()
    both = np.kron(matrix, matrix).astype(np.float32)  # [36, 9]
    columns = kernel.astype(jnp.float32).reshape(9, -1)
    return jnp.matmul(both, columns).reshape(TILE, TILE, *kernel.shape[2:])


def _rows_with_margin(x: jax.Array, first: jax.Array, rows: int) -> jax.Array:
    """Rows `first` to `first + rows` of images and one more on both sides, zero outside: a padded
    copy of the images would cost as much as a transform."""
    batch, height, width, channels = x.shape

    def cut(start: jax.Array, size: int) -> jax.Array:
        shape = (batch, size, width, channels)
        return lax.dynamic_slice(x, (0, start, 0, 0), shape, allow_negative_indices=False)

    above = cut(jnp.maximum(first - 1, 0), 1) * (first > 0).astype(x.dtype)
    below = cut(jnp.minimum(first + rows, height - 1), 1) * (first + rows < height).astype(x.dtype)
    return jnp.concatenate([above, cut(first, rows), below], axis=1)


def _convolve_band(x: jax.Array, weights: jax.Array) -> jax.Array:
    """[batch, rows + 2, width, channels] -> [batch, rows, width, features].

    The six positions of a tile along its rows stay one axis; XLA's CPU backend then also keeps what
    it would compute again for each of six uses, and has six products to compile instead of 36.
    """
    of_outputs, _, of_inputs = transforms()
    batch, rows, width, channels = x.shape
    rows -= TILE - OUTPUTS
    down = jnp.stack(_combine(of_inputs, _phases(x.astype(jnp.float32), 1, rows)))
    down = jnp.pad(down, ((0, 0), (0, 0), (0, 0), (1, 1), (0, 0)))  # [6, batch, th, width + 2, c]
    tiles = _combine(of_inputs, _phases(down, 3, width))  # six of [6, batch, th, tw, channels]
    products = [
        jnp.matmul(part.reshape(TILE, -1, channels), weights[:, j]) for j, part in enumerate(tiles)
    ]
    across = jnp.concatenate(_combine(of_outputs, products), axis=-1)  # [6, tiles, 4 features]
    across = across.reshape(TILE, batch, rows // OUTPUTS, width, -1)
    y = jnp.stack(_combine(of_outputs, list(across)), axis=2)  # [batch, th, 4, width, features]
    return y.reshape(batch, rows, width, -1).astype(x.dtype)


def _phases(x: jax.Array, axis: int, size: int) -> list[jax.Array]:
    """The first, second, ..., sixth element of every tile along an axis with a margin."""
    last = size - OUTPUTS
    return [lax.slice_in_dim(x, i, i + last + 1, OUTPUTS, axis) for i in range(TILE)]


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Rows of a constant matrix times arrays, without the products with zero and one."""
    return [_sum_of(zip(row.tolist(), parts, strict=True)) for row in matrix]


def _sum_of(terms: Iterable[tuple[float, jax.Array]]) -> jax.Array:
    weighted = [part if weight == 1 else weight * part for weight, part in terms if weight]
    return functools.reduce(jnp.add, weighted)
