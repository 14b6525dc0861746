"""Fast convolutions and their gradients, against XLA's and in closed form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gct_jax.kernels import convolution as convolution_kernels
from gct_jax.kernels.convolution import (
    convolution,
    depthwise,
    filter_gradient,
    narrow_filter_gradient,
)
from gct_jax.kernels.target import tracing_for

IMAGES = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("narrow", [0, 4])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((2, 6, 5, 3), 3),
        ((2, 8, 12, 3), 3),
        ((1, 7, 4, 2), 5),
        ((3, 1, 8, 1), 7),
        ((1, 4, 8, 6), 3),
    ],
)
def test_gradients_equal_those_of_the_convolution(monkeypatch, shape, window, narrow, dtype):
    monkeypatch.setattr(convolution_kernels, "BAND_PIXELS", 20)
    monkeypatch.setattr(convolution_kernels, "NARROW_CHANNELS", narrow)
    for limit in ("FEWEST_CHANNELS", "WINOGRAD_CHANNELS", "FEWEST_TILES"):
        monkeypatch.setattr(convolution_kernels, limit, 1)  # sides of 8 and 12 are whole tiles
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(*shape[:3], n)), dtype) for n in (shape[3], 4))
    kernel = jnp.asarray(rng.normal(size=(window, window, shape[3], 4)), dtype)

    def gradients(conv):
        def loss(x, kernel):
            y = conv(x, kernel, (1, 1), "SAME", dimension_numbers=IMAGES)
            return jnp.vdot(y.astype(jnp.float32), weight.astype(jnp.float32))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    tolerance = 1e-4 if dtype == jnp.float32 else 0.1
    for ours, expected in zip(
        gradients(convolution), gradients(lax.conv_general_dilated), strict=True
    ):
        assert ours.dtype == expected.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halving_is_the_convolution_of_stride_two(dtype):
    """Value and gradients of sums of 12 products."""
    rng = np.random.default_rng(5)
    x, kernel, weight = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((2, 6, 8, 3), (2, 2, 3, 5), (2, 3, 4, 5))
    )

    def value_and_gradients(conv):
        def loss(x, kernel):
            y = conv(x, kernel, (2, 2), "SAME", dimension_numbers=IMAGES)
            return jnp.vdot(y.astype(jnp.float32), weight.astype(jnp.float32))

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel))

    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    ours, expected = map(value_and_gradients, (convolution, lax.conv_general_dilated))
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(
            mine.astype(jnp.float32), other.astype(jnp.float32), atol=tolerance, rtol=tolerance
        )


def test_filter_gradient_of_one_pixel_is_its_neighbourhood():
    x = np.random.default_rng(1).normal(size=(1, 5, 6, 2)).astype(np.float32)
    gradient = np.zeros((1, 5, 6, 1), np.float32)
    gradient[0, 2, 3] = 1
    for of_filter in (filter_gradient, narrow_filter_gradient):
        found = of_filter(jnp.asarray(x), jnp.asarray(gradient), 3)
        np.testing.assert_array_equal(found[..., 0], x[0, 1:4, 2:5])


@pytest.mark.parametrize(
    "options",
    [{"strides": 2}, {"padding": "VALID"}, {"kernel_size": (4, 4)}, {"kernel_size": (2, 2)}],
)
def test_other_convolutions_are_left_to_xla(monkeypatch, options):
    monkeypatch.setattr(convolution_kernels, "FEWEST_CHANNELS", 1)
    layer = functools.partial(nn.Conv, 3, **{"kernel_size": (3, 3)} | options)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 8, 2)), jnp.float32)
    variables = layer().init(jax.random.key(0), x)
    ours, plain = (
        jax.make_jaxpr(jax.grad(lambda v, m=module: m.apply(v, x).sum()))(variables)
        for module in (layer(conv_general_dilated=convolution), layer())
    )
    assert str(ours) == str(plain)


def test_memory_is_that_of_a_band():
    x = jax.ShapeDtypeStruct((1, 256, 256, 8), jnp.float32)
    program = jax.jit(functools.partial(filter_gradient, window=3)).lower(x, x).compile()
    image = 256 * 256 * 8 * 4
    assert program.memory_analysis().temp_size_in_bytes < 3 * image  # two padded copies and a band


@pytest.mark.parametrize("past", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_depthwise_is_xlas_grouped_convolution(past, dtype, platform):
    """Value and gradients; sums of 120 products in another order."""
    rng = np.random.default_rng(3)
    x, weight = (jnp.asarray(rng.normal(size=(2, 5, 4, 3, 6)), dtype) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 6)), dtype)
    bias = jnp.asarray(rng.normal(size=6), dtype)

    def grouped(x, kernel, bias):
        y = lax.conv_general_dilated(
            x,
            kernel[:, :, :, None],
            (1, 1, 1),
            ((past, 2 - past), (1, 1), (1, 1)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            feature_group_count=6,
        )
        return y + bias

    def value_and_gradients(function):
        def loss(arguments):
            y = function(*arguments)
            return jnp.vdot(y.astype(jnp.float32), weight.astype(jnp.float32)), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))((x, kernel, bias))
        return y, *gradients

    with tracing_for(platform):
        ours = value_and_gradients(functools.partial(depthwise, past=past))
    x, kernel, bias = (array.astype(jnp.float32) for array in (x, kernel, bias))
    for mine, expected in zip(ours, value_and_gradients(grouped), strict=True):
        assert mine.dtype == dtype
        tolerance = 1e-4 if dtype == jnp.float32 else 0.03 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), expected, atol=tolerance)
