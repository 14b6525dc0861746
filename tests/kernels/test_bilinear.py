"""Bilinear maps with hand-written adjoints under every transformation, against plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from gct_jax.kernels.bilinear import bilinear
from gct_jax.kernels.convolution import convolution, depthwise

calls = []


def spied(role, function):
    def call(*arguments, **static):
        calls.append(role)
        return function(*arguments, **static)

    return call


product = bilinear(
    "scaled_product",
    spied("f", lambda x, w, scale: scale * x @ w),
    spied("of_x", lambda g, w, scale: scale * g @ w.T),
    spied("of_w", lambda x, g, scale: scale * x.T @ g),
)


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_every_transformation_of_a_product():
    x, w, dx, dw = arrays((3, 4), (4, 2), (3, 4), (4, 2))

    def ours(x, w):
        return jnp.sum(jnp.sin(product(x, w, scale=3.0)))

    def plain(x, w):
        return jnp.sum(jnp.sin(3.0 * x @ w))

    transformations = [
        lambda f: f(x, w),
        lambda f: jax.jit(f)(x, w),
        lambda f: jax.jvp(f, (x, w), (dx, dw)),
        lambda f: jax.grad(f, (0, 1))(x, w),
        lambda f: jax.jit(jax.hessian(f, (0, 1)))(x, w),
        lambda f: jax.jacrev(jax.jacfwd(f, 1), 0)(x, w),
        lambda f: jax.vmap(jax.grad(f, 1), (0, None))(jnp.stack([x, dx]), w),
        lambda f: jax.grad(lambda w: jax.vmap(f, (0, None))(jnp.stack([x, dx]), w).sum())(w),
        lambda f: jax.jvp(jax.grad(jax.checkpoint(f)), (x, w), (dx, dw)),
    ]
    for transform in transformations:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
            transform(ours),
            transform(plain),
        )


def test_a_gradient_is_computed_by_the_adjoints():
    x, w = arrays((5, 3), (3, 6))
    calls.clear()
    jax.jit(jax.grad(lambda x, w: product(x, w, scale=2.0).sum(), (0, 1))).lower(x, w)
    assert {"of_x", "of_w"} <= set(calls)


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((1, 8, 8, 2), (3, 3, 2, 3)),
        ((1, 8, 8, 64), (3, 3, 64, 64)),
        ((2, 8, 8, 128), (3, 3, 128, 128)),
    ],
)
def test_a_convolution_has_both_modes(image, kernel, monkeypatch):
    monkeypatch.setattr("gct_jax.kernels.convolution.FEWEST_TILES", 1)
    x, w, dx, dw = arrays(image, kernel, image, kernel)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    numbers = {"dimension_numbers": lax.conv_dimension_numbers(image, kernel, *numbers.values())}

    def both(function):
        def call(x, w):
            return function(x, w, (1, 1), "SAME", **numbers)

        value = jax.jvp(call, (x, w), (dx, dw))
        back = jax.vjp(call, x, w)[1](value[0])
        rows = jax.vmap(call, (None, 0))(x, jnp.stack([w, dw]))
        return value, back, rows

    for a, b in zip(
        *map(jax.tree.leaves, map(both, (convolution, lax.conv_general_dilated))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("past", [1, 2])
def test_a_depthwise_convolution_has_both_modes(past):
    x, kernel, bias = arrays((1, 3, 4, 5, 2), (3, 3, 3, 2), (2,))
    check_grads(lambda *a: depthwise(*a, past), (x, kernel, bias), 2, atol=0.05, rtol=0.05)
