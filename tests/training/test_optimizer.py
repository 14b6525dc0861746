"""Schedule, decay mask, clipping and average against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gct_jax.errors import ConfigError
from gct_jax.training.config import OptimizerConfig
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    slowed,
    update_ema,
)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_warm_up_then_cosine_to_the_final_fraction(step, share):
    config = OptimizerConfig(
        learning_rate=2e-3, warmup_steps=10, schedule="cosine", final_fraction=0.1
    )
    assert float(learning_rate(config, 110, step)) == pytest.approx(2e-3 * share, rel=1e-5)


def test_constant_schedule_stays():
    config = OptimizerConfig(learning_rate=2e-3)
    assert float(learning_rate(config, 10, 99)) == pytest.approx(2e-3)


def test_first_adam_step_is_the_learning_rate_and_only_matrices_decay():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1e6)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    grads = {"kernel": jnp.full((2, 2), 0.7), "bias": jnp.full(2, -0.7)}
    optimizer = make_optimizer(config, 10)
    new, _, norms = apply_gradients(optimizer, grads, optimizer.init(params), params)
    # Adam's first step is lr * sign(gradient); decay adds lr * 0.5 * 3
    np.testing.assert_allclose(new["kernel"], 3.0 - 0.1 * (1 + 1.5), rtol=1e-5)
    np.testing.assert_allclose(new["bias"], 3.0 + 0.1, rtol=1e-5)
    assert float(norms["norm/gradient"]) == pytest.approx(0.7 * np.sqrt(6), rel=1e-6)
    assert float(norms["norm/parameter"]) == pytest.approx(3 * np.sqrt(6), rel=1e-6)


def test_muon_turns_hidden_matrices_only():
    config = OptimizerConfig(algorithm="muon", learning_rate=0.1, clip_norm=1e6)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 4)))[0] for n in (6, 4))
    skewed = (left * [5.0, 2.0, 1.0, 0.5]) @ right.T  # [6, 4]
    names = ("layer/kernel", "to_logits/kernel", "table/embedding")
    grads = {name: jnp.asarray(skewed, jnp.float32) for name in names}
    params = {name: jnp.zeros((6, 4)) for name in names}
    optimizer = make_optimizer(config, 10)
    new, _, _ = apply_gradients(optimizer, grads, optimizer.init(params), params)
    # Muon: singular values of the gradient become (nearly) equal, its root mean square 0.2 lr
    values = np.linalg.svd(new["layer/kernel"], compute_uv=False)
    assert values.max() / values.min() < 2
    wanted = 0.1 * 0.2 * np.sqrt(6) * left @ right.T
    assert np.sum(new["layer/kernel"] * -wanted) > 0.9 * np.linalg.norm(wanted) * np.linalg.norm(
        new["layer/kernel"]
    )
    # Adam (here with Nesterov's momentum): the sign of the gradient
    for name in names[1:]:
        size = abs(float(new[name][0, 0]))
        np.testing.assert_allclose(new[name], -size * np.sign(skewed), rtol=1e-4)
        assert 0.05 < size < 0.2


def test_muon_takes_a_convolution_as_one_matrix():
    flat = jax.random.normal(jax.random.key(0), (18, 5))
    updates = []
    for shape in ((18, 5), (3, 3, 2, 5)):
        config = OptimizerConfig(algorithm="muon", learning_rate=0.1)
        params = {"conv": {"kernel": jnp.zeros(shape)}}
        grads = {"conv": {"kernel": flat.reshape(shape)}}
        optimizer = make_optimizer(config, 10)
        new, _, _ = apply_gradients(optimizer, grads, optimizer.init(params), params)
        updates.append(np.asarray(new["conv"]["kernel"]).reshape(18, 5))
    np.testing.assert_allclose(updates[0], updates[1], rtol=1e-5, atol=1e-7)


def test_a_slowed_part_moves_by_its_share():
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1e6)
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("t5", "maskgit")}
    optimizer = optax.chain(make_optimizer(config, 10), slowed("t5", 0.02))
    new, _, _ = apply_gradients(optimizer, params, optimizer.init(params), params)
    np.testing.assert_allclose(new["maskgit"]["kernel"], 1 - 0.1, rtol=1e-5)
    np.testing.assert_allclose(new["t5"]["kernel"], 1 - 0.1 * 0.02, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimizerConfig(clip_norm=0.5)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    optimizer = make_optimizer(config, 10)
    _, state, _ = apply_gradients(optimizer, grads, optimizer.init(params), params)
    (moment,) = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)][:1]
    np.testing.assert_allclose(moment, [(1 - config.b1) * 3.0 / 10, 0], rtol=1e-5)


def test_average_warms_up_to_its_decay():
    ema = {"x": jnp.float32(0.0)}
    ema = update_ema(ema, {"x": jnp.float32(1.0)}, jnp.int32(0), 0.99)
    assert float(ema["x"]) == pytest.approx(0.9)  # decay 1 / 10
    late = update_ema({"x": jnp.float32(0.0)}, {"x": jnp.float32(1.0)}, jnp.int32(10**6), 0.99)
    assert float(late["x"]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("field", ["schedule", "algorithm"])
def test_unknown_names_are_refused(field):
    with pytest.raises(ConfigError, match="'linear'"):
        OptimizerConfig(**{field: "linear"})


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_only_matrices_decay(algorithm):
    """Without gradients all that moves a parameter is the decay."""
    config = OptimizerConfig(algorithm=algorithm, learning_rate=0.1, weight_decay=0.5)
    params = {"layer": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "scale": jnp.ones(3)}
    optimizer = make_optimizer(config, 10)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-5)
    for fixed in (updates["layer"]["bias"], updates["scale"]):
        np.testing.assert_array_equal(fixed, 0)
