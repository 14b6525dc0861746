"""Position modules against XLA's convolution and against a bias evaluated pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gct_jax.errors import ConfigError
from gct_jax.kernels.bias import bias_matrix
from gct_jax.models.positions import ContinuousPositionBias, PositionConvolution

SHAPE = (2, 4, 2, 3, 5)  # batch, time, height, width, dim


def random_convolution(causal, layout):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 3, 3, SHAPE[-1])).astype(np.float32),
        "bias": rng.normal(size=SHAPE[-1]).astype(np.float32),
    }
    x = rng.normal(size=SHAPE).astype(np.float32)
    y = PositionConvolution(SHAPE[-1], causal, layout).apply({"params": params}, x)
    return params, x, np.asarray(y)


def grouped_convolution(params, x, causal):
    return params["bias"] + lax.conv_general_dilated(
        x,
        params["kernel"][:, :, :, None],
        (1, 1, 1),
        [(2, 0) if causal else (1, 1), (1, 1), (1, 1)],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("causal", [True, False])
def test_grid_layout_is_a_depthwise_convolution(causal):
    params, x, y = random_convolution(causal, "grid")
    np.testing.assert_allclose(y, grouped_convolution(params, x, causal), atol=1e-5)


def test_interleaved_layout_misreads_positions_as_the_reference_does():
    params, x, y = random_convolution(True, "interleaved")
    _, frames, height, width, _ = SHAPE
    moved, place = np.empty_like(x), {}
    for t, r, c in np.ndindex(frames, height, width):
        m = (r * width + c) * frames + t
        rest = m % (height * width)
        place[t, r, c] = m // (height * width), rest // width, rest % width
        moved[:, *place[t, r, c]] = x[:, t, r, c]
    expected = np.asarray(grouped_convolution(params, moved, causal=True))
    for (t, r, c), (t2, r2, c2) in place.items():
        np.testing.assert_allclose(y[:, t, r, c], expected[:, t2, r2, c2], atol=1e-5)


@pytest.mark.parametrize("grid_dims", [2, 3])
def test_bias_is_the_mlp_of_every_pair(grid_dims):
    grid = (3, 2, 2)
    module = ContinuousPositionBias(width=6, heads=2, grid_dims=grid_dims)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda key: module.init(key, grid), jax.random.key(0)),
    )
    bias = jax.jit(lambda variables: module.apply(variables, grid))(variables)
    used = grid if grid_dims == 3 else (1, *grid[1:])
    assert bias.grid == used
    positions = np.array(list(np.ndindex(*used)))[:, 3 - grid_dims :]
    x = (positions[:, None] - positions[None]).astype(np.float64)
    x = np.sign(x) * np.log(1 + np.abs(x))
    for name in ("hidden_0", "hidden_1", "out"):
        layer = variables["params"][name]
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if name != "out":
            x = np.where(x > 0, x, 0.1 * x)
    np.testing.assert_allclose(bias_matrix(bias), np.moveaxis(x, -1, 0), atol=2e-5)


def test_unknown_options():
    with pytest.raises(ConfigError, match="layout 'rows'"):
        PositionConvolution(3, layout="rows").init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, 3)))
    with pytest.raises(ConfigError, match="grid_dims = 1"):
        ContinuousPositionBias(4, 2, grid_dims=1).init(jax.random.key(0), (1, 2, 2))
