"""Schedules, objectives and posterior against recorded reference values and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase
from hypothesis import given, settings
from hypothesis import strategies as st

from gct_jax.corruption import diffusion
from gct_jax.errors import ConfigError

# The golden array `q_sample_from_to` (re-noising between two times) is not compared: only
# inpainting would need it, and the reference's variance for it is wrong.


@pytest.fixture(scope="module")
def golden():
    return GoldenCase("schedule")


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedule_and_amplitudes_match_golden(golden, name):
    (time,) = golden.inputs("t")
    log_snr = diffusion.noise_schedule(name)(time)
    # float32 cos(pi/2) decides the cosine value at t = 1, so only its size is compared there.
    stable = slice(None, -1) if name == "cosine" and time[-1] == 1 else slice(None)
    expected = golden.output(f"{name}__log_snr")
    np.testing.assert_allclose(log_snr[stable], expected[stable], atol=5e-5)
    assert log_snr[-1] < -9.9
    alpha, sigma = diffusion.alpha_sigma(log_snr)
    golden.check(f"{name}__alpha", alpha)
    golden.check(f"{name}__sigma", sigma)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_forward_process_and_posterior_match_golden(golden, name):
    schedule = diffusion.noise_schedule(name)
    x_start, noise, x_t, v = golden.inputs("x_start", "noise", "x_t", "v")
    time, next_time = golden.inputs("t_b", "t_next_b")
    log_snr, next_log_snr = schedule(time), schedule(next_time)
    golden.check(f"{name}__q_sample_log_snr", log_snr)
    golden.check(f"{name}__q_sample", diffusion.q_sample(x_start, noise, log_snr))
    golden.check(f"{name}__x0_from_v", diffusion.predict_x0("v", x_t, v, log_snr))
    from_noise = diffusion.predict_x0("noise", x_t, noise, log_snr)
    # The last sample has t = 1, where dividing by alpha gives values of 1e7.
    golden.check(f"{name}__x0_from_noise", from_noise, rtol=1e-6)
    mean, variance, log_variance = diffusion.posterior(x_start, x_t, log_snr, next_log_snr)
    golden.check(f"{name}__q_posterior_mean", mean)
    golden.check(f"{name}__q_posterior_variance", variance)
    golden.check(f"{name}__q_posterior_log_variance_clipped", log_variance)
    before = schedule(jnp.maximum(time - 1 / 25, 0))
    default_mean = diffusion.posterior(x_start, x_t, log_snr, before)[0]
    golden.check(f"{name}__q_posterior_default_next_mean", default_mean)


def test_objectives_invert_their_targets():
    x_start, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    log_snr = jnp.array([-3.0, 0.0, 5.0])
    x_t = diffusion.q_sample(x_start, noise, log_snr)
    for objective in ("v", "noise", "x_start"):
        target = diffusion.training_target(objective, x_start, noise, log_snr)
        recovered = diffusion.predict_x0(objective, x_t, target, log_snr)
        np.testing.assert_allclose(recovered, x_start, atol=1e-5)


def test_posterior_is_consistent_with_the_marginal():
    """Drawing x_s from q(x_s | x_t, x_0) gives the marginal alpha_s x_0 + sigma_s eps."""
    log_snr_t, log_snr_s = jnp.float32(-1.0), jnp.float32(1.5)
    alpha_t, sigma_t = diffusion.alpha_sigma(log_snr_t)
    alpha_s, sigma_s = diffusion.alpha_sigma(log_snr_s)
    ones = jnp.ones((1, 1, 1, 1))
    mean_x0, variance, _ = diffusion.posterior(ones, alpha_t * ones, log_snr_t, log_snr_s)
    slope = diffusion.posterior(0 * ones, ones, log_snr_t, log_snr_s)[0]
    np.testing.assert_allclose(mean_x0, alpha_s * ones, rtol=1e-5)
    np.testing.assert_allclose(slope**2 * sigma_t**2 + variance, sigma_s**2 * ones, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.floats(0.0, 1.0))
def test_absolute_quantile_equals_numpy(side, fraction):
    x = np.random.default_rng(side).normal(size=(2, side, side, 1)).astype(np.float32)
    expected = np.quantile(np.abs(x).reshape(2, -1), fraction, axis=1)
    np.testing.assert_allclose(diffusion.absolute_quantile(x, fraction), expected, atol=1e-5)


def test_dynamic_threshold_leaves_images_in_range_alone():
    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    np.testing.assert_array_equal(diffusion.dynamic_threshold(image), image)
    stretched = diffusion.dynamic_threshold(3 * image)
    assert np.abs(stretched).max() == 1
    np.testing.assert_allclose(stretched[0, 4, 0], 3 * image[0, 4, 0] / 2.85, atol=1e-2)


def test_p2_weight_is_sigma_for_the_published_constants():
    log_snr = jnp.linspace(-10, 8, 7)
    weight = diffusion.p2_weight(log_snr)
    np.testing.assert_allclose(weight, diffusion.alpha_sigma(log_snr)[1], rtol=1e-5)


def test_unknown_schedule_is_named():
    with pytest.raises(ConfigError, match="'quadratic' is not one of cosine, linear"):
        diffusion.noise_schedule("quadratic")


def test_an_unknown_objective_is_an_error():
    x = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ConfigError, match="objective 'eps' is not one of"):
        diffusion.predict_x0("eps", x, x, jnp.zeros(()))
    with pytest.raises(ConfigError, match="objective 'eps' is not one of"):
        diffusion.training_target("eps", x, x, jnp.zeros(1))
