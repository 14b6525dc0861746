"""A batch computed in parts: the same update as of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_stage import KEY, stage_batch, stage_config, stage_state

from gct_jax.sharding import make_mesh, shard_batch, state_shardings
from gct_jax.training.micro_batches import in_micro_batches
from gct_jax.training.stages import make_stage

OPTIONS = {
    "ctvit": ["ctvit.perceptual_weight=0", "ctvit.discriminator_start_step=0"],
    "t5": [],
    "maskgit": ["maskgit.critic=self", "maskgit.counterfactual_pairs=True"],
    "superres": ["model.superres.self_cond=True"],
}


def test_rows_come_back_in_their_places_and_the_gradient_is_that_of_all():
    x, w = jnp.arange(24.0).reshape(12, 2), jnp.float32(0.3)

    def loss(w, count):
        function = in_micro_batches(lambda rows: {"y": jnp.tanh(w * rows["x"])}, count)
        return jnp.square(function({"x": x, "absent": None})["y"].sum(0)).sum()

    function = in_micro_batches(lambda rows: 2 * rows, 3)
    np.testing.assert_array_equal(function(x), 2 * x)
    whole, parts = (jax.value_and_grad(loss)(w, count) for count in (1, 4))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


@pytest.mark.parametrize(
    "stage",
    [pytest.param(stage, marks=() if stage == "t5" else pytest.mark.slow) for stage in OPTIONS],
)
@pytest.mark.long
def test_the_update_is_that_of_the_whole_batch(stage):
    """Codebook, discriminator, critic and shares of masked tokens included; on a mesh as well."""
    mesh = make_mesh((2, 1, 2), jax.devices()[:4])
    results = {}
    for parts in (1, 4):
        config = stage_config(stage, *OPTIONS[stage], f"loop.micro_batches={parts}")
        state, batch = stage_state(config), stage_batch(config)
        placed = jax.device_put(state, state_shardings(state, mesh))
        with jax.set_mesh(mesh):
            step = quick_jit(make_stage(config).train_step)
            results[parts] = jax.device_get(step(placed, shard_batch(batch, mesh, 8), KEY))
    (one, metrics), (four, other_metrics) = results[1], results[4]
    for name, value in metrics.items():
        assert other_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for tree in ("opt_state", "extra"):
        pairs = zip(
            jax.tree.leaves(getattr(one, tree)), jax.tree.leaves(getattr(four, tree)), strict=True
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(a).max() + 1e-9)
