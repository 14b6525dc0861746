"""Folding projections into keys and values changes the order of sums, nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.kernels import folded_attention
from gct_jax.kernels.folded_attention import folded_attend, folding_saves
from gct_jax.kernels.target import tracing_for
from gct_jax.models import unet_attention
from gct_jax.models.unet_attention import CrossAttention, attend, split_heads

HEADS, DIM_HEAD, CHANNELS = 3, 8, 12


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("cached_logits", [folded_attention.CACHED_LOGITS, 150, 1])
def test_value_and_gradients_are_those_of_projected_queries(monkeypatch, cached_logits):
    """At once, in chunks of four with two positions left over, and each position by itself."""
    monkeypatch.setattr(folded_attention, "CACHED_LOGITS", cached_logits)
    assert_same_as_projected(folded_attend)


def test_the_kernel_for_tpus_is_the_same_function():
    """In the interpreter, for blocks that ten positions do not fill."""

    def on_tpu(*arguments):
        with tracing_for("tpu"):
            return folded_attend(*arguments)

    assert_same_as_projected(on_tpu)


def assert_same_as_projected(function):
    """Values and gradients of `function` are those of attention with all projections."""
    rng = np.random.default_rng(0)
    width = HEADS * DIM_HEAD
    arguments = (
        normal(rng, 2, 10, CHANNELS),
        normal(rng, 2, 5, HEADS, DIM_HEAD),
        normal(rng, 2, 5, HEADS, DIM_HEAD),
        normal(rng, CHANNELS, width) / CHANNELS**0.5,
        normal(rng, width, CHANNELS) / width**0.5,
    )

    def unfolded(x, key, value, query_kernel, out_kernel):
        return attend(split_heads(x @ query_kernel, HEADS), key, value, cosine=False) @ out_kernel

    def gradients(one):
        loss = quick_jit(jax.grad(lambda a: jnp.sum(jnp.sin(one(*a)))))
        return loss(arguments)

    np.testing.assert_allclose(function(*arguments), unfolded(*arguments), atol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=3e-5),
        gradients(function),
        gradients(unfolded),
    )


@pytest.mark.parametrize(("channels", "tokens"), [(4, 3), (12, 40), (64, 41), (256, 41), (64, 500)])
def test_it_is_chosen_where_it_multiplies_less(channels, tokens):
    positions = 1000  # so many that what is done once for all of them counts for nothing
    folded = 2 * positions * channels * tokens
    projected = 2 * positions * 64 * (channels + tokens)
    assert folding_saves(channels, tokens, 64) == (folded < projected)


def test_the_layer_has_the_same_parameters_and_output_either_way(monkeypatch):
    rng = np.random.default_rng(1)
    attention = CrossAttention(HEADS, DIM_HEAD)
    x, tokens = normal(rng, 2, 10, CHANNELS), normal(rng, 2, 4, 6)
    outputs, variables = [], []
    for fold in (True, False):
        monkeypatch.setattr(unet_attention, "folding_saves", lambda *sizes, fold=fold: fold)
        variables.append(attention.init(jax.random.key(0), x, tokens))
        outputs.append(attention.apply(variables[0], x, tokens))
    jax.tree.map(np.testing.assert_array_equal, *variables)
    np.testing.assert_allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 128), (2, 4, 6), (2, 10)])
def test_maps_and_positions_attend_alike_on_tpus_and_elsewhere(shape):
    rng = np.random.default_rng(2)
    attention = CrossAttention(HEADS, DIM_HEAD)
    x, tokens = normal(rng, *shape, CHANNELS), normal(rng, shape[0], 4, 6)
    variables = attention.init(jax.random.key(0), x, tokens)

    def run(x):
        return attention.apply(variables, x, tokens)

    positions = run(x.reshape(shape[0], -1, CHANNELS)).reshape(x.shape)
    np.testing.assert_allclose(run(x), positions, atol=1e-5)
    with tracing_for("tpu"):
        on_tpu = run(x)
    np.testing.assert_allclose(on_tpu, positions, atol=1e-5)
