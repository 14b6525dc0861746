"""Padded hidden units: the same function and gradient, zeros that stay, widths that divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_stage import KEY, stage_batch, stage_config, stage_state

from configs import base
from gct_jax.components import abstract_variables
from gct_jax.models.transformer import FeedForward
from gct_jax.sharding import make_mesh, state_shardings
from gct_jax.training.hidden_units import MULTIPLE, cropped, padded
from gct_jax.training.stages import make_stage, stage_module


def test_a_padded_layer_is_the_same_function_with_the_same_gradient():
    layer, x = FeedForward(16), jax.random.normal(KEY, (3, 5, 16))
    params = layer.init(KEY, x)["params"]
    whole = {"feed_forward": params}
    wide = padded(whole)["feed_forward"]
    assert params["out"]["kernel"].shape == (42, 16) and wide["out"]["kernel"].shape == (48, 16)

    def loss(params):
        return jnp.square(layer.apply({"params": params}, x) - 1).sum()

    narrow, gradient = jax.value_and_grad(loss)(params)
    same, wide_gradient = jax.value_and_grad(loss)(wide)
    assert float(same) == pytest.approx(float(narrow), rel=1e-6)
    back = cropped({"feed_forward": wide_gradient}, whole)["feed_forward"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), back, gradient
    )
    assert not np.any(wide_gradient["value"]["kernel"][:, 42:])
    assert not np.any(wide_gradient["gate"]["kernel"][:, 42:])
    assert not np.any(wide_gradient["out"]["kernel"][42:])


@pytest.mark.parametrize("stage", ["maskgit"])
def test_what_is_padded_stays_zero_and_what_is_handed_on_has_the_published_widths(stage):
    config = stage_config(stage)
    state = stage_state(config)
    after, _ = quick_jit(make_stage(config).train_step)(state, stage_batch(config), KEY)
    handed_on = stage_module(config).trained_components(config, after)
    published = abstract_variables(config.model, stage)
    shapes = jax.tree.map(jnp.shape, handed_on[stage]["params"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, published["params"])
    differing = 0
    for tree in (after.params[stage], after.ema[stage]):
        again = padded(cropped(tree, published["params"]))
        jax.tree.map(np.testing.assert_array_equal, again, tree)
        differing += jax.tree.map(jnp.shape, tree) != shapes
    assert differing == 2  # the tiny widths do need padding


@pytest.mark.parametrize("stage", ["ctvit", "maskgit"])
def test_a_tensor_axis_divides_the_published_model(stage):
    mesh = make_mesh((4, 1, 2))
    tree = jax.eval_shape(padded, abstract_variables(base.model(), stage)["params"])
    whole = sum(leaf.size for leaf in jax.tree.leaves(tree))
    held = sum(
        int(np.prod(sharding.shard_shape(leaf.shape)))
        for leaf, sharding in zip(
            jax.tree.leaves(tree), jax.tree.leaves(state_shardings(tree, mesh)), strict=True
        )
    )
    assert held / whole < 0.52
    added = whole / sum(
        x.size for x in jax.tree.leaves(abstract_variables(base.model(), stage)["params"])
    )
    assert added < 1.01 and MULTIPLE % 2 == 0
