"""3x3 convolutions of a normalised map on a TPU, that apply the norm and SiLU on the way.

With rows r, columns c, and per image and channel a gain a and an offset b (of a group norm),

    s = silu(a x + b),   y[r, c] = bias + sum_ij W[i, j]^T s[r + i - 1, c + j - 1]          (1)

zeros around s, and with the gradient g of y

    ds[r, c] = sum_ij W[i, j] g[r - i + 1, c - j + 1]                                       (2)
    dW[i, j] = sum_rc s[r + i - 1, c + j - 1] g[r, c]^T,   dbias = sum_rc g[r, c]            (3)

XLA cuts maps of few images with few channels into stripes before it convolves them, pads the
stripes and copies every map several times. Here a map is read once and one is written. Maps are
held as [row, channel, column], so that 64 channels fill the vector registers, and the sums of a
row are one product of two matrices, [features, 9 channels] and [9 channels, columns].
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from gct_jax.array_types import Images
from gct_jax.kernels.pallas_tpu import NN, NT, dot, on_own_samples, run_kernel
from gct_jax.kernels.reverse_mode import reverse_mode_only
from gct_jax.kernels.target import target_platform

LANES = 128
ROWS = 8  # of a map at a time
CHANNELS = (16, 512)  # fewest and most, of multiples of the fewest


def fuses(shape: tuple[int, ...], features: int) -> bool:
    """Whether `normed_convolution` is for the platform and maps [b, h, w, c] of this shape."""
    _, height, width, channels = shape
    fewest, most = CHANNELS
    fits = all(size % fewest == 0 and size <= most for size in (channels, features))
    mesh = jax.sharding.get_abstract_mesh()
    alone = "tensor" not in mesh.axis_names or mesh.shape["tensor"] == 1
    return (
        target_platform() == "tpu"
        and alone  # the partitioner splits features, a kernel does not
        and fits
        and height % ROWS == 0
        and width % LANES == 0
    )


def normed_convolution(
    x: Images,
    gain: Float[Array, "batch channels"],
    offset: Float[Array, "batch channels"],
    kernel: Float[Array, "3 3 channels features"],
    bias: Float[Array, "features"],
) -> Float[Array, "batch height width features"]:
    """Equation (1) of x [b, h, w, c], on each device of the current mesh for its own images; in the
    type of `x`, summed in float32."""
    with reverse_mode_only("the U-Net's convolution on a TPU", 'backend="dense"'):
        return on_own_samples(_convolved, x, gain, offset, kernel, bias, whole=2)


def _convolved(x: Array, gain: Array, offset: Array, kernel: Array, bias: Array) -> Array:
    maps = rearrange(x, "b h w c -> b h c w")
    matrix = rearrange(kernel.astype(x.dtype), "i j c f -> f (i j c)")
    columns = (table.astype(jnp.float32)[..., None] for table in (gain, offset, bias))
    y = _convolve(maps, *columns, matrix)
    return rearrange(y, "b h f w -> b h w f")


@jax.custom_vjp
def _convolve(x: Array, gain: Array, offset: Array, bias: Array, matrix: Array) -> Array:
    """Equation (1); x [b, h, c, w], gain and offset [b, c, 1], bias [f, 1], matrix [f, 9 c]."""
    return _products(x, matrix, {"gain": gain, "offset": offset, "bias": bias})


def _convolve_fwd(x, gain, offset, bias, matrix):
    return _convolve(x, gain, offset, bias, matrix), (x, gain, offset, matrix)


def _convolve_bwd(residuals, g):
    x, gain, offset, matrix = residuals
    turned = rearrange(matrix, "f (i j c) -> c i j f", i=3, j=3)[:, ::-1, ::-1]
    ds = _products(g, rearrange(turned, "c i j f -> c (i j f)"), {})
    dmatrix, dbias = _filter_gradient(x, gain, offset, g)
    a = gain[:, None] * x + offset[:, None]
    share = jax.nn.sigmoid(a)
    da = ds * share * (1 + a * (1 - share))
    dx = (gain[:, None] * da).astype(x.dtype)
    dgain, doffset = ((da * factor).sum((1, 3))[..., None] for factor in (x, 1))
    return dx, dgain, doffset, dbias, dmatrix.astype(matrix.dtype)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _products(x: Array, matrix: Array, tables: dict[str, Array]) -> Array:
    """Equation (1), or without tables the sum alone, s = x."""
    batch, height, _, width = x.shape
    features = matrix.shape[0]
    out = pl.BlockSpec((1, ROWS, features, width), lambda b, step: (b, step, 0, 0))
    (y,) = run_kernel(
        _convolution_kernel,
        (batch, height // ROWS),
        _rows(x) | _tables(tables) | {"matrix": (matrix, _whole(matrix))},
        {"y": (jax.ShapeDtypeStruct((batch, height, features, width), x.dtype), out)},
        sequential=0,
        work=(2 * batch * height * width * matrix.size, x.size if tables else 0),
        read_again_bytes=_halo_bytes(x),
    )
    return y


def _filter_gradient(x: Array, gain: Array, offset: Array, g: Array) -> tuple[Array, Array]:
    """Equation (3): [f, 9 c] and [f, 1] float32."""
    batch, height, channels, width = x.shape
    features = g.shape[2]
    some = pl.BlockSpec((1, ROWS, features, width), lambda b, step: (b, step, 0, 0))
    shapes = [jax.ShapeDtypeStruct((features, n), jnp.float32) for n in (9 * channels, 1)]
    tables = _tables({"gain": gain, "offset": offset})
    dmatrix, dbias = run_kernel(
        _filter_gradient_kernel,
        (batch, height // ROWS),
        _rows(x) | tables | {"g": (g, some)},
        {
            "dmatrix": (shapes[0], _whole(shapes[0])),
            "dbias": (shapes[1], _whole(shapes[1])),
        },
        sequential=2,
        work=(2 * batch * height * width * shapes[0].size, x.size),
        read_again_bytes=_halo_bytes(x),
    )
    return dmatrix, dbias


def _convolution_kernel(refs: dict[str, Any]) -> None:
    windows = _windows(refs)
    for row in range(ROWS):
        y = dot(refs["matrix"][...], _around(windows, row), NN)
        if "bias" in refs:
            y += refs["bias"][...]
        refs["y"][0, row] = y.astype(refs["y"].dtype)


def _filter_gradient_kernel(refs: dict[str, Any]) -> None:
    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        refs["dmatrix"][...] = jnp.zeros_like(refs["dmatrix"])
        refs["dbias"][...] = jnp.zeros_like(refs["dbias"])

    windows = _windows(refs)
    for row in range(ROWS):
        g = refs["g"][0, row]
        refs["dmatrix"][...] += dot(g, _around(windows, row), NT)
        refs["dbias"][...] += g.astype(jnp.float32).sum(1, keepdims=True)


def _windows(refs: dict[str, Any]) -> list[Array]:
    """Of the rows of a block and one before and behind, s of the left, same and right column,
    [3 c, w] each."""
    step, last = pl.program_id(1), pl.num_programs(1) - 1
    rows = [refs["above"][0, 0], *(refs["x"][0, row] for row in range(ROWS)), refs["below"][0, 0]]
    inside = [step > 0, *[None] * ROWS, step < last]
    return [_window(refs, row, seen) for row, seen in zip(rows, inside, strict=True)]


def _window(refs: dict[str, Any], row: Array, inside: Any) -> Array:
    s = row.astype(jnp.float32)
    if "gain" in refs:
        s = refs["gain"][0] * s + refs["offset"][0]
        s *= jax.nn.sigmoid(s)
    if inside is not None:
        s = jnp.where(inside, s, 0.0)
    width = s.shape[1]
    column = lax.broadcasted_iota(jnp.int32, s.shape, 1)
    left = jnp.where(column > 0, pltpu.roll(s, 1, 1), 0.0)
    right = jnp.where(column < width - 1, pltpu.roll(s, width - 1, 1), 0.0)
    return jnp.concatenate([left, s, right], 0).astype(row.dtype)


def _around(windows: list[Array], row: int) -> Array:
    """[9 c, w] of a row of a block."""
    return jnp.concatenate(windows[row : row + 3], 0)


def _rows(x: Array) -> dict[str, tuple[Array, pl.BlockSpec]]:
    """A block of rows of a map, the row before it and the one behind it."""
    _, height, channels, width = x.shape
    one = (1, 1, channels, width)

    def above(b, step):
        return b, jnp.maximum(step * ROWS - 1, 0), 0, 0

    def below(b, step):
        return b, jnp.minimum((step + 1) * ROWS, height - 1), 0, 0

    some = pl.BlockSpec((1, ROWS, channels, width), lambda b, step: (b, step, 0, 0))
    return {
        "x": (x, some),
        "above": (x, pl.BlockSpec(one, above)),
        "below": (x, pl.BlockSpec(one, below)),
    }


def _halo_bytes(x: Array) -> int:
    """Of the rows before and behind each block."""
    return 2 * x.size // ROWS * x.dtype.itemsize


def _tables(tables: dict[str, Array]) -> dict[str, tuple[Array, pl.BlockSpec]]:
    """Columns [b, c, 1] of an image each, and [f, 1] of all."""
    return {
        name: (
            table,
            pl.BlockSpec((1, *table.shape[1:]), lambda b, step: (b, 0, 0))
            if table.ndim == 3
            else _whole(table),
        )
        for name, table in tables.items()
    }


def _whole(array: Any) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda b, step: (0,) * len(array.shape))
