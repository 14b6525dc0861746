"""What each stage's step does, on the tiny model: learns, drops the text, takes turns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from configs import tiny
from gct_jax.config import override
from gct_jax.errors import ConfigError
from gct_jax.training import ctvit, maskgit, superres

KEY = jax.random.key(0)


def volumes(rng, count=4):
    """Smooth random volumes [count, 5, 16, 16, 1]."""
    coarse = rng.uniform(-1, 1, (count, 5, 2, 2))
    return np.kron(coarse, np.ones((1, 1, 8, 8)))[..., None].astype(np.float32)


def compiled(module, config):
    return (
        quick_jit(functools.partial(module.init_state, config))(KEY, {}),
        quick_jit(functools.partial(module.train_step, config)),
    )


def changed(a, b):
    return any(bool(jnp.any(x != y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_ctvit_learns_and_the_discriminator_waits_for_its_turn():
    config = override(
        tiny.ctvit(),
        [
            "ctvit.adversarial=True",
            "ctvit.discriminator_base_dim=2",
            "ctvit.discriminator_every=2",
            "ctvit.discriminator_start_step=2",
            "ctvit.penalty_every=1",
        ],
    )
    state, step = compiled(ctvit, config)
    batch = {"volume": volumes(np.random.default_rng(0))}
    history, moved = [], []
    for i in range(24):
        before = state
        state, metrics = step(state, batch, jax.random.key(i))
        state = state.replace(step=state.step + 1)
        moved.append(changed(before.params["discriminator"], state.params["discriminator"]))
        history.append(jax.device_get(metrics))
    # from step 2 on, every second step; the adversarial term is off before
    assert moved == [i >= 3 and i % 2 == 1 for i in range(24)]
    assert [float(m["adversarial_weight"]) > 0 for m in history[:4]] == [False, False, True, True]
    assert history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]
    rows = np.linalg.norm(state.extra["codebook"]["embedding"], axis=1)
    assert rows.max() < 1 + 1e-5  # means of unit vectors
    assert set(ctvit.trained_parts(config, state)["ctvit"]) == {"params", "codebook"}


def test_ctvit_decodes_directions_at_first_and_codes_later():
    config = override(tiny.ctvit(), ["ctvit.continuous_steps=2"])
    state, _ = compiled(ctvit, config)
    volume = volumes(np.random.default_rng(4))
    params = state.params["ctvit"]

    @quick_jit
    def rebuilt(step, rows):
        variables = {"params": params, "codebook": {"quantizer": {"embedding": rows}}}
        return ctvit.forward(config, variables, volume, step).reconstruction

    rows = state.extra["codebook"]["embedding"]
    assert not changed(rebuilt(1, rows), rebuilt(1, rows[::-1] * 0.5))
    assert changed(rebuilt(2, rows), rebuilt(2, rows * 0.5))


def test_ctvit_needs_weights_for_its_perceptual_loss():
    config = override(tiny.ctvit(), ["ctvit.perceptual_weight=1.0"])
    with pytest.raises(ConfigError, match=r"ctvit\.vgg16"):
        jax.eval_shape(functools.partial(ctvit.init_state, config), KEY, {})


@pytest.fixture(scope="module")
def token_batch():
    rng = np.random.default_rng(1)
    return {
        "token_ids": rng.integers(0, 32, (4, 3, 2, 2), dtype=np.int32),
        "text_ids": rng.integers(1, 128, (4, 48), dtype=np.int32),
    }


@pytest.mark.parametrize("critic", ["none", "self"])
def test_maskgit_starts_at_chance_and_learns_tokens_by_heart(token_batch, critic):
    config = override(tiny.maskgit(), [f"maskgit.critic={critic}"])
    state, step = compiled(maskgit, config)
    history = []
    for i in range(80):
        state, metrics = step(state, token_batch, jax.random.key(i))
        history.append(jax.device_get(metrics))
    assert history[0]["cross_entropy"] == pytest.approx(np.log(32), rel=0.2)
    assert np.mean([m["cross_entropy"] for m in history[-10:]]) < 0.6 * np.log(32)
    if critic == "self":
        assert history[0]["critic"] == pytest.approx(np.log(2), rel=0.5)


def test_dropped_text_reaches_no_parameter_of_the_text_encoder(token_batch):
    config = tiny.maskgit()
    state, _ = compiled(maskgit, config)

    @quick_jit
    def text_gradient(drop):
        gradient = jax.grad(maskgit.loss_fn, has_aux=True)(
            state.params, {}, config, token_batch, KEY, drop
        )[0]
        return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient["t5"]))

    assert float(text_gradient(1.0)) == 0
    assert float(text_gradient(0.0)) > 0


def test_a_frozen_text_encoder_is_kept_and_exported(token_batch):
    config = override(tiny.maskgit(), ["maskgit.train_text_encoder=False"])
    state, step = compiled(maskgit, config)
    after, _ = step(state, token_batch, KEY)
    assert not changed(state.extra, after.extra) and "t5" not in after.params
    assert set(maskgit.trained_parts(config, after)) == {"maskgit", "t5"}


def test_superres_learns_and_leaves_the_text_encoder_alone():
    config = override(tiny.superres(), ["superres.crop=16", "optimizer.learning_rate=0.01"])
    state, step = compiled(superres, config)
    low = volumes(np.random.default_rng(2))[:, 0]
    batch = {
        "low_res": low,
        "high_res": np.kron(low, np.ones((1, 2, 2, 1), np.float32)),
        "text_ids": np.ones((4, 48), np.int32),
    }
    losses = []
    first = state
    for i in range(60):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert not changed(first.extra, state.extra)


def test_random_squares_show_the_same_place():
    rng = np.random.default_rng(3)
    low = rng.uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
    high = np.kron(low, np.ones((1, 4, 4, 1), np.float32))
    small, large = superres.random_squares(KEY, low, high, 12)
    assert small.shape == (6, 3, 3, 1)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((1, 4, 4, 1), np.float32)))
    rows = [int(np.argwhere(low[i, ..., 0] == small[i, 0, 0, 0])[0, 0]) for i in range(6)]
    assert len(set(rows)) > 1


def test_evaluation_uses_the_average_and_keeps_every_text(token_batch):
    config = tiny.maskgit()
    state, _ = compiled(maskgit, config)
    evaluate = quick_jit(functools.partial(maskgit.eval_step, config))
    other = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    assert evaluate(state, token_batch, KEY) == evaluate(other, token_batch, KEY)
