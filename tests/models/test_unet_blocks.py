"""Blocks of the U-Net against plain NumPy, Flax and PyTorch formulations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import quick_jit

from gct_jax.models.unet_attention import attend, linear_attend
from gct_jax.models.unet_blocks import (
    CrossEmbed,
    FinalConv,
    GlobalContext,
    GroupNorm,
    PixelShuffle,
    subpixel_initializer,
)

torch = pytest.importorskip("torch")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("f")


def random_params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


def run(module, variables, *inputs):
    return np.asarray(quick_jit(module.apply)(variables, *inputs))


def channel_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def channel_last(x):
    return np.moveaxis(x.numpy(), 1, -1)


def test_group_norm_equals_flax():
    x = 3 + draw(2, 5, 7, 12)
    ours, theirs = GroupNorm(4), nn.GroupNorm(4, epsilon=1e-5)
    variables = random_params(ours, x)
    np.testing.assert_allclose(run(ours, variables, x), run(theirs, variables, x), atol=2e-5)


@pytest.mark.parametrize(("sizes", "stride"), [((3, 7, 15), 1), ((2, 4), 2)])
def test_cross_embed_equals_parallel_convolutions(sizes, stride):
    x = draw(2, 8, 8, 3)
    module = CrossEmbed(10, sizes, stride)
    variables = random_params(module, x)
    params = variables["params"]
    kernels = [np.transpose(params[f"kernel_{size}"], (3, 2, 0, 1)) for size in sizes]
    assert [len(kernel) for kernel in kernels] == ([5, 2, 3] if stride == 1 else [5, 5])
    parts = [
        torch.nn.functional.conv2d(
            channel_first(x), torch.from_numpy(kernel.copy()), None, stride, (size - stride) // 2
        )
        for kernel, size in zip(kernels, sizes, strict=True)
    ]
    expected = channel_last(torch.cat(parts, 1)) + params["bias"]
    np.testing.assert_allclose(run(module, variables, x), expected, atol=1e-4)


def test_final_conv_equals_a_convolution_of_the_concatenation():
    x, low_res = draw(1, 6, 6, 5), draw(1, 6, 6, 2, seed=1)
    module = FinalConv(3)
    variables = random_params(module, x, low_res)
    joined = run(nn.Conv(3, (3, 3)), variables, np.concatenate([x, low_res], -1))
    np.testing.assert_allclose(run(module, variables, x, low_res), joined, atol=1e-4)


def test_pixel_shuffle_starts_without_a_checkerboard():
    module = PixelShuffle(3)
    kernel = subpixel_initializer(jax.random.key(0), (4, 12))
    variables = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(12)}}}
    enlarged = run(module, variables, draw(1, 5, 5, 4))
    assert enlarged.shape == (1, 10, 10, 3)
    np.testing.assert_array_equal(enlarged[:, ::2, ::2], enlarged[:, 1::2, 1::2])
    assert enlarged[0, ::2, ::2].std() > 0.1


def test_global_context_pools_with_softmax_weights():
    x = draw(2, 3, 3, 4)
    module = GlobalContext()
    variables = random_params(module, x)
    params = variables["params"]
    logits = (x @ params["position"]["kernel"])[..., 0].reshape(2, 9)
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pooled = np.einsum("bp,bpc->bc", weights, x.reshape(2, 9, 4))
    hidden = pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    logit = hidden / (1 + np.exp(-hidden)) @ params["gate"]["kernel"] + params["gate"]["bias"]
    expected = 1 / (1 + np.exp(-logit))
    np.testing.assert_allclose(run(module, variables, x)[:, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("key_heads", [1, 3])
def test_attention_equals_softmax_of_similarities(cosine, key_heads):
    query, key, value = draw(2, 5, 3, 4), draw(2, 6, key_heads, 4, seed=1), None
    value = draw(2, 6, key_heads, 4, seed=2)
    if cosine:
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key)]
        logits = 16 * np.einsum("bnhd,bmgd->bhgnm", *unit)
    else:
        logits = np.einsum("bnhd,bmgd->bhgnm", query, key) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    every = np.einsum("bhgnm,bmgd->bnhgd", weights, value)
    chosen = [every[:, :, h, h if key_heads == 3 else 0] for h in range(3)]
    actual = quick_jit(attend, static_argnums=3)(query, key, value, cosine)
    np.testing.assert_allclose(actual, np.concatenate(chosen, -1), atol=1e-5)


def test_linear_attention_is_a_weighted_sum_over_positions():
    query, key, value = (draw(2, n, 3, 4, seed=n) for n in (5, 6, 6 + 0))
    features = np.exp(query) / np.exp(query).sum(-1, keepdims=True)
    positions = np.exp(key) / np.exp(key).sum(1, keepdims=True)
    weights = np.einsum("bnhd,bmhd->bhnm", features, positions)
    expected = 0.5 * np.einsum("bhnm,bmhd->bnhd", weights, value).reshape(2, 5, 12)
    actual = quick_jit(linear_attend, static_argnums=3)(query, key, value, 0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
