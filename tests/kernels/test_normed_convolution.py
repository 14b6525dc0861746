"""The convolution of a normalised map for TPUs, in Pallas' interpreter, against XLA's."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from jax.sharding import NamedSharding

from gct_jax.errors import ConfigError
from gct_jax.kernels.normed_convolution import fuses, normed_convolution
from gct_jax.kernels.target import tracing_for
from gct_jax.models.unet_blocks import ResnetBlock
from gct_jax.sharding import BATCH, make_mesh

SHAPE, FEATURES = (2, 16, 128, 16), 32


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x, gain, offset, kernel, bias):
    s = nn.silu(x * gain[:, None, None] + offset[:, None, None])
    y = jax.lax.conv_general_dilated(
        s, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + bias


def value_and_gradients(function, arguments):
    weight = normal(*SHAPE[:3], FEATURES, seed=9)

    def loss(*arguments):
        y = function(*arguments)
        return jnp.vdot(y.astype(jnp.float32), weight), y

    run = quick_jit(jax.value_and_grad(loss, tuple(range(5)), has_aux=True))
    (_, y), gradients = run(*arguments)
    return y, *gradients


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_norm_silu_and_convolution(dtype):
    batch, _, _, channels = SHAPE
    arguments = (
        normal(*SHAPE).astype(dtype),
        1 + 0.3 * normal(batch, channels, seed=1),
        normal(batch, channels, seed=2),
        normal(3, 3, channels, FEATURES, seed=3) / 12,
        normal(FEATURES, seed=4),
    )
    ours = value_and_gradients(normed_convolution, arguments)
    exact = value_and_gradients(plain, [array.astype(jnp.float32) for array in arguments])
    assert ours[0].dtype == ours[1].dtype == dtype
    tolerance = 2e-5 if dtype == jnp.float32 else 0.03
    for one, other in zip(ours, exact, strict=True):
        largest = float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=tolerance * largest)


@pytest.mark.parametrize("shape", [None, (2, 2, 1), (2, 1, 2)])
def test_a_block_is_the_same_function_of_the_same_parameters(shape):
    """On a mesh too; one that splits features has no use for the kernel."""
    block = ResnetBlock(32, 8, gate=True)
    x, time = normal(4, 8, 128, 16), normal(4, 6, seed=1)
    variables = jax.tree.map(
        lambda leaf: normal(*leaf.shape, seed=leaf.size) / 4,
        jax.eval_shape(block.init, jax.random.key(0), x, time),
    )

    def loss(variables, x):
        return jnp.square(block.apply(variables, x, time)).mean()

    plain = quick_jit(jax.value_and_grad(loss, (0, 1)))(variables, x)
    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing_for("tpu"))
        if shape:
            mesh = make_mesh(shape, jax.devices()[:4])
            stack.enter_context(jax.set_mesh(mesh))
            x = jax.device_put(x, NamedSharding(mesh, BATCH))
        assert fuses(x.shape, 32) == (shape != (2, 1, 2))
        abstract = jax.eval_shape(block.init, jax.random.key(0), x, time)
        fused = quick_jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1)))(variables, x)
    assert jax.tree.structure(abstract) == jax.tree.structure(variables)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
    for one, other in zip(*map(jax.tree.leaves, (plain, fused)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * largest)


def test_plain_convolutions_have_both_modes_and_the_error_names_them():
    x, time = normal(1, 8, 128, 16), normal(1, 6, seed=1)
    with tracing_for("tpu"):
        variables = ResnetBlock(16, 8).init(jax.random.key(0), x, time)
        with pytest.raises(ConfigError, match='reverse mode only; backend="dense" gives jvp too'):
            jax.jvp(lambda x: ResnetBlock(16, 8).apply(variables, x, time), (x,), (x,))
        plain = ResnetBlock(16, 8, backend="dense")
        y, dy = jax.jvp(lambda x: plain.apply(variables, x, time), (x,), (x,))
        fused = ResnetBlock(16, 8).apply(variables, x, time)
    np.testing.assert_allclose(y, fused, atol=1e-4)
    assert float(jnp.abs(dy).max()) > 0
