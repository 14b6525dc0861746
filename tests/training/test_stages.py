"""Properties of single stages; that they learn is seen in tests/launch/test_train.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_model import random_variables

from configs import tiny
from gct_jax.config import override
from gct_jax.errors import ConfigError
from gct_jax.training import ctvit, maskgit, superres

KEY = jax.random.key(0)


def abstract_state(module, config):
    return jax.eval_shape(functools.partial(module.init_state, config), KEY, {})


def test_ctvit_needs_weights_for_its_perceptual_loss():
    config = override(tiny.ctvit(), ["ctvit.perceptual_weight=1.0"])
    with pytest.raises(ConfigError, match=r"ctvit\.vgg16"):
        abstract_state(ctvit, config)


def test_dropped_text_reaches_no_parameter_of_the_text_encoder():
    config = tiny.maskgit()
    params = {
        component: random_variables(config.model, component)["params"]
        for component in ("maskgit", "t5")
    }
    rng = np.random.default_rng(1)
    batch = {
        "token_ids": rng.integers(0, 32, (2, 3, 2, 2), dtype=np.int32),
        "text_ids": rng.integers(1, 128, (2, 48), dtype=np.int32),
    }

    @quick_jit
    def text_gradient(drop):
        gradient, _ = jax.grad(maskgit.loss_fn, has_aux=True)(params, {}, config, batch, KEY, drop)
        return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient["t5"]))

    assert float(text_gradient(1.0)) == 0
    assert float(text_gradient(0.0)) > 0


def test_a_frozen_text_encoder_has_no_optimizer_and_is_exported():
    config = override(tiny.maskgit(), ["maskgit.train_text_encoder=False"])
    state = abstract_state(maskgit, config)
    assert set(state.params) == {"maskgit"} and set(state.extra) == {"t5"}
    assert set(maskgit.trained_components(config, state)) == {"maskgit", "t5"}


@pytest.mark.parametrize(
    "stage", ["ctvit", "maskgit", pytest.param("superres", marks=pytest.mark.slow)]
)
@pytest.mark.long
def test_remat_changes_no_gradient(stage):
    rng = np.random.default_rng(2)
    config = getattr(tiny, stage)()
    start = {
        component: jax.tree.map(jnp.asarray, random_variables(config.model, component))
        for component in ("ctvit", "maskgit", "t5", "superres")
    }
    module = {"ctvit": ctvit, "maskgit": maskgit, "superres": superres}[stage]
    state = module.init_state(config, KEY, start)
    batch = {
        "volume": rng.uniform(-1, 1, (2, 5, 16, 16, 1)).astype(np.float32),
        "token_ids": rng.integers(0, 32, (2, 3, 2, 2), dtype=np.int32),
        "text_ids": rng.integers(1, 128, (2, 48), dtype=np.int32),
        "low_res": rng.uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32),
        "high_res": rng.uniform(-1, 1, (2, 32, 32, 1)).astype(np.float32),
    }

    def loss(params, config):
        if stage == "superres":
            return superres.loss_fn(params["superres"], state.extra, config, batch, KEY, 0.1)
        if stage == "ctvit":
            return ctvit.generator_loss(params["ctvit"], state, config, batch, KEY)[0]
        return maskgit.loss_fn(params, state.extra, config, batch, KEY, 0.1)[0]

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, config=override(config, [f"remat={flag}"]))))(
            state.params
        )
        for flag in (False, True)
    ]
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            other, one, atol=3e-5 * max(1, float(np.abs(one).max()))
        ),
        *gradients,
    )


def test_random_squares_show_the_same_place():
    rng = np.random.default_rng(3)
    low = rng.uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
    high = np.kron(low, np.ones((1, 4, 4, 1), np.float32))
    small, large = superres.random_squares(KEY, low, high, 12)
    assert small.shape == (6, 3, 3, 1)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((1, 4, 4, 1), np.float32)))
    rows = [int(np.argwhere(low[i, ..., 0] == small[i, 0, 0, 0])[0, 0]) for i in range(6)]
    assert len(set(rows)) > 1


def test_a_window_sees_differences_within_its_range_as_shares_of_its_width():
    volume = jnp.array([-1.0, -0.9, -0.4, 0.0, -0.7])
    other = jnp.array([-1.2, -0.6, 0.9, 1.0, -0.7])
    np.testing.assert_allclose(
        ctvit.window_difference(volume, other, (-1000.0, -400.0)), [0, -0.5, 0, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        ctvit.window_difference(volume, other, (-200.0, 300.0)), [0, 0, -1, -0.6, 0], atol=1e-6
    )


def test_lung_error_weighs_the_findings_of_pairs_and_enters_the_loss():
    config = override(
        tiny.ctvit(), ["ctvit.counterfactual_pairs=True", "ctvit.counterfactual_weight=3.0"]
    )
    start = {"ctvit": jax.tree.map(jnp.asarray, random_variables(config.model, "ctvit"))}
    state = ctvit.init_state(config, KEY, start)
    volume = np.random.default_rng(4).uniform(-1, 0, (2, 5, 16, 16, 1)).astype(np.float32)
    volume[1, :3] = volume[0, :3]  # no finding in these slices

    def run(weight):
        weighted = override(config, [f"ctvit.lung_weight={weight}"])
        loss, (metrics, out) = quick_jit(
            lambda v: ctvit.generator_loss(
                state.params["ctvit"], state, weighted, {"volume": v}, KEY
            )
        )(volume)
        return float(loss), float(metrics["lung_error"]), np.asarray(out.reconstruction)

    plain, error, reconstruction = run(0.0)
    difference = np.clip(volume, -1, -0.4) - np.clip(reconstruction, -1, -0.4)
    finding = np.abs(volume[0] - volume[1]) > 0.03
    expected = np.mean(np.where(finding, 4, 1) * (difference / 0.6) ** 2)
    assert error == pytest.approx(expected, rel=1e-5)
    assert run(2.0)[0] == pytest.approx(plain + 2 * error, rel=1e-5)


def test_the_elucidated_loss_of_a_fresh_unet_is_one():
    """Its last layer is zero, and the weights give every noise level the same initial loss."""
    config = override(tiny.superres(), ["model.diffusion.process=elucidated", "superres.crop=0"])
    state = quick_jit(lambda key: superres.init_state(config, key, {}))(KEY)
    rng = np.random.default_rng(0)
    batch = {
        "low_res": rng.normal(size=(8, 16, 16, 1)).astype(np.float32),
        "high_res": (0.5 * rng.normal(size=(8, 32, 32, 1))).astype(np.float32),
        "text_ids": np.ones((8, 48), np.int32),
    }
    metrics = quick_jit(functools.partial(superres.eval_step, config))(state, batch, KEY)
    assert float(metrics["loss"]) == pytest.approx(1.0, abs=0.04)
