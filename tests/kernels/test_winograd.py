"""Winograd's convolution against sums in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gct_jax.kernels import winograd
from gct_jax.kernels.winograd import BAND_TILES, transforms, winograd_convolution
from gct_jax.sharding import make_mesh


def draw(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def direct(x, kernel):
    """The definition: nine shifted products, in float64."""
    height, width = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )


def test_transforms_make_a_window_over_six_inputs():
    outputs, kernels, inputs = transforms()
    data, window = draw(6, 1, np.float64), draw(3, 2, np.float64)
    found = outputs @ ((kernels @ window) * (inputs @ data))
    np.testing.assert_allclose(found, np.correlate(data, window, "valid"), atol=1e-12)


@pytest.mark.parametrize("band_tiles", [1, 10, BAND_TILES])
@pytest.mark.parametrize("shape", [(1, 16, 12, 3), (3, 4, 20, 2), (2, 8, 4, 5)])
def test_is_the_sum_over_the_window(monkeypatch, shape, band_tiles):
    """Rounding of float32 in sums of up to 45 products around 1."""
    monkeypatch.setattr(winograd, "BAND_TILES", band_tiles)
    x, kernel = draw(shape), draw((3, 3, shape[-1], 7), 1)
    found = jax.jit(winograd_convolution)(x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, direct(x, kernel), atol=3e-5)


def test_points_round_less_than_the_usual_ones(monkeypatch):
    """Float32 at a width of the published U-Net: root mean square of the error."""
    x, kernel = draw((1, 32, 32, 128)), draw((3, 3, 128, 16), 1) / np.float32(np.sqrt(9 * 128))
    exact = direct(x, kernel)

    def error(y):
        return np.sqrt(np.mean((np.asarray(y) - exact) ** 2))

    of_xla = error(
        jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    ours = error(winograd_convolution(x, kernel))
    transforms.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
        usual = error(winograd_convolution(x, kernel))
    transforms.cache_clear()
    assert ours < 4 * of_xla
    assert ours < 0.6 * usual


def test_half_precision_is_rounded_once():
    x, kernel = (jnp.asarray(draw(s), jnp.bfloat16) for s in ((1, 8, 8, 4), (3, 3, 4, 4)))
    found = winograd_convolution(x, kernel)
    assert found.dtype == jnp.bfloat16
    expected = direct(np.asarray(x, np.float32), np.asarray(kernel, np.float32))
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=2**-8, atol=1e-4)


def test_memory_of_a_stack_is_that_of_one_convolution():
    """Transformed kernels, four times as large as the kernels, are not all made beforehand."""

    def stack(kernels, x):
        for kernel in kernels:
            x = winograd_convolution(x, kernel)
        return x

    def working_bytes(depth):
        kernels = [jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)] * depth
        x = jax.ShapeDtypeStruct((1, 16, 16, 64), jnp.float32)
        return jax.jit(stack).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes

    transformed = 36 * 64 * 64 * 4
    assert working_bytes(5) - working_bytes(1) < 1.5 * transformed


def test_split_over_devices_it_is_the_same(monkeypatch):
    monkeypatch.setattr(winograd, "BAND_TILES", 8)
    x, kernel = draw((4, 16, 8, 6)), draw((3, 3, 6, 4), 1)
    mesh = make_mesh((2, 2, 2))
    place = functools.partial(NamedSharding, mesh)
    placed = (
        jax.device_put(x, place(PartitionSpec(("data", "fsdp")))),
        jax.device_put(kernel, place(PartitionSpec(None, None, "fsdp", "tensor"))),
    )
    with jax.set_mesh(mesh):
        found = jax.jit(winograd_convolution)(*placed)
    np.testing.assert_allclose(found, direct(x, kernel), atol=3e-5)
