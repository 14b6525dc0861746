"""The layout table and its effect: the same numbers on one device and on eight."""

import json
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from tiny_model import random_variables
from tiny_stage import KEY, stage_batch, stage_config, stage_state

from configs import base, demo, large, tiny
from gct_jax.components import abstract_variables, present_components
from gct_jax.config import override
from gct_jax.errors import ConfigError
from gct_jax.sharding import (
    AXES,
    BATCH,
    make_mesh,
    parameter_spec,
    process_rows,
    shard_batch,
    state_shardings,
)
from gct_jax.training import ctvit, maskgit, superres, t5
from gct_jax.training.optimizer import apply_gradients, make_optimizer
from gct_jax.training.stages import make_stage

TABLE = Path(__file__).parent / "golden" / "sharding_tiny.json"


def specs(tree, mesh):
    """Path -> layout as text, for every leaf."""
    shardings = state_shardings(tree, mesh)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(tuple(sharding.spec))
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }


def test_layout_of_the_tiny_model_is_the_recorded_one():
    mesh = make_mesh((2, 2, 2))
    tree = {
        component: abstract_variables(tiny.model(), component)["params"]
        for component in present_components(tiny.model())
    }
    assert specs(tree, mesh) == json.loads(TABLE.read_text())


@pytest.mark.parametrize("config", [base, demo, large])
@pytest.mark.parametrize("component", present_components(tiny.model()))
def test_large_parameters_are_split_over_every_device(config, component):
    mesh = make_mesh((1, 4, 2))
    tree = abstract_variables(config.model(), component)["params"]
    shardings = state_shardings(tree, mesh)
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        if leaf.size >= 2**18:
            assert np.prod(sharding.shard_shape(leaf.shape)) * 4 <= leaf.size


def test_optimizer_moments_and_average_follow_their_parameter():
    config = override(tiny.ctvit(), ["ctvit.adversarial=False"])
    state = jax.eval_shape(make_stage(config).init_state, jax.random.key(0), {})
    placed = state_shardings(state, make_mesh((2, 2, 2)))
    params = jax.tree.leaves(placed.params["ctvit"])
    assert jax.tree.leaves(placed.ema["ctvit"]) == params
    moments = [leaf for leaf in jax.tree.leaves(placed.opt_state) if leaf.spec != P()]
    assert len(moments) == 2 * len([leaf for leaf in params if leaf.spec != P()])


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ConfigError, match=r"ctvit/novel/kernel of shape \(4, 4\)"):
        parameter_spec("ctvit/novel/kernel", (4, 4), make_mesh((2, 2, 2)))


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh((2, 2, 2))
    assert parameter_spec("a/query/kernel", (6, 3), mesh) == P("fsdp", None)


LOSSES = {
    "ctvit": lambda params, state, config, batch: ctvit.generator_loss(
        params["ctvit"], state, config, batch, KEY
    )[0],
    "discriminator": lambda params, state, config, batch: ctvit.discriminator_loss(
        params["discriminator"],
        config,
        batch["volume"][:, 0],
        batch["volume"][:, 1],
        jnp.asarray(True),
    ),
    "t5": lambda params, state, config, batch: t5.loss_fn(params, config, batch)[0],
    "maskgit": lambda params, state, config, batch: maskgit.loss_fn(
        params, state.extra, config, batch, KEY, 0.5
    )[0],
    "superres": lambda params, state, config, batch: superres.loss_fn(
        params["superres"], state.extra, config, batch, KEY, 0.5
    ),
}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [5, 2, 7, 0, 3, 6, 1, 4]])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_rows_lie_where_the_sharding_says_whatever_the_order_of_devices(shape, order):
    devices = np.array(jax.devices())[order].reshape(shape)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)
    batch = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3)}
    assert process_rows(mesh, 16) == list(range(16))
    made = shard_batch(batch, mesh, 16)["x"]
    np.testing.assert_array_equal(np.asarray(made), batch["x"])
    assert made.sharding.spec == BATCH
    for shard in made.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), batch["x"][shard.index])


def test_rows_that_cannot_be_split_lie_whole_on_every_device():
    mesh = make_mesh((2, 2, 2))
    made = shard_batch({"x": np.arange(6.0)}, mesh, 6)["x"]
    assert made.sharding.is_fully_replicated
    with pytest.raises(ValueError, match="x has 5 rows, this process holds 6"):
        shard_batch({"x": np.arange(5.0)}, mesh, 6)


@pytest.mark.parametrize(
    "stage",
    [pytest.param(s, marks=pytest.mark.slow if s == "discriminator" else ()) for s in LOSSES],
)
@pytest.mark.long
def test_loss_and_gradient_are_those_of_one_device(stage, monkeypatch):
    # float32; the order of the sums differs, hence 1e-4 of each largest entry; 1e-7 for gradients
    # that are zero but for rounding (a constant added to all attention logits). The mesh has all
    # three axes: with two XLA's partitioner made no mistake, see `constrain_batch`. At the kink of
    # a ReLU another order of the sums changes the gradient by several per cent, hence smooth ones.
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)
    monkeypatch.setattr(flax.linen, "leaky_relu", lambda x, slope: jax.nn.silu(x) + slope * x)
    config = stage_config("ctvit" if stage == "discriminator" else stage)
    state, batch = stage_state(config), stage_batch(config)

    def results(mesh):
        placed = jax.device_put(state, state_shardings(state, mesh))

        def loss(params, placed, batch):
            return LOSSES[stage](params, placed, config, batch)

        with jax.set_mesh(mesh):
            gradient = quick_jit(jax.value_and_grad(loss))
            return jax.device_get(gradient(placed.params, placed, shard_batch(batch, mesh, 8)))

    one = results(make_mesh((1, 1, 1)))
    eight = results(make_mesh((2, 2, 2)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max() + 1e-7)


@pytest.mark.parametrize("algorithm", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.long
def test_updates_are_those_of_one_device(algorithm):
    config = override(tiny.maskgit(), [f"optimizer.algorithm={algorithm}"])
    rng = np.random.default_rng(0)
    params = {
        component: random_variables(config.model, component)["params"]
        for component in ("ctvit", "superres")
    }
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def results(mesh):
        state = jax.device_put(
            optimizer.init(params), state_shardings(optimizer.init(params), mesh)
        )
        placed, slopes = (
            jax.device_put(tree, state_shardings(tree, mesh)) for tree in (params, gradients)
        )
        with jax.set_mesh(mesh):
            return jax.device_get(
                quick_jit(apply_gradients, static_argnums=0)(optimizer, slopes, state, placed)[0]
            )

    one = results(make_mesh((1, 1, 1)))
    eight = results(make_mesh((2, 2, 2)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
