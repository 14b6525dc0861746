"""Solvers against a diffusion whose exact solution is known: Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gct_jax.config import SUPERRES_SOLVERS
from gct_jax.corruption.diffusion import alpha_sigma, log_snr_cosine
from gct_jax.errors import InputError
from gct_jax.sampling.diffusion_solvers import (
    initial_state,
    solve,
    solver_step,
    time_grid,
)

MEAN, STD = 0.2, 0.1


def exact_denoiser(x, log_snr, previous):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""
    del previous
    alpha, sigma = alpha_sigma(log_snr)
    gain = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def exact_solution(x, log_snr_from, log_snr_to):
    """The probability-flow map between two Gaussian marginals is affine."""
    (alpha_from, sigma_from), (alpha_to, sigma_to) = map(alpha_sigma, (log_snr_from, log_snr_to))
    spread_from, spread_to = (
        jnp.sqrt((alpha * STD) ** 2 + sigma**2)
        for alpha, sigma in ((alpha_from, sigma_from), (alpha_to, sigma_to))
    )
    return alpha_to * MEAN + spread_to / spread_from * (x - alpha_from * MEAN)


def dpm_error(steps):
    noise = jnp.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
    log_snrs = jnp.linspace(-6, 6, steps + 1)
    result = solve(
        noise,
        denoise=exact_denoiser,
        step_noise=lambda step: noise,
        log_snrs=log_snrs,
        solver="dpm++",
    )
    return float(jnp.abs(result - exact_solution(noise, log_snrs[0], log_snrs[-1])).max())


def test_dpm_solver_converges_with_second_order():
    errors = [dpm_error(steps) for steps in (10, 20, 40)]
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3
    assert errors[2] < 1e-3


def test_dpm_solver_is_exact_for_a_constant_prediction():
    """With a fixed clean image the solution is x_s = alpha_s x_0 + (sigma_s / sigma_t) rest."""
    noise = jnp.ones((1, 2, 2, 1))
    log_snrs = log_snr_cosine(time_grid(6))
    state = initial_state(noise)
    for step in range(6):
        state = solver_step(
            state,
            jnp.int32(step),
            denoise=lambda x, log_snr, previous: jnp.full_like(x, 0.3),
            step_noise=lambda step: noise,
            log_snrs=log_snrs,
            solver="dpm++",
        )
        alpha, sigma = alpha_sigma(log_snrs[step + 1])
        np.testing.assert_allclose(state.x, alpha * 0.3 + sigma, atol=1e-5)


def sampled(seed, side, log_snrs, solver):
    """An image of side x side independent draws."""
    key, shape = jax.random.key(seed), (1, side, side, 1)
    return solve(
        jax.random.normal(key, shape),
        denoise=exact_denoiser,
        step_noise=lambda step: jax.random.normal(jax.random.fold_in(key, step), shape),
        log_snrs=log_snrs,
        solver=solver,
    )


@pytest.mark.parametrize("solver, steps", [("ancestral", 800), ("sde-dpm++", 100)])
def test_stochastic_sampling_draws_from_the_data_distribution(solver, steps):
    result = sampled(0, 64, log_snr_cosine(time_grid(steps)), solver)
    assert abs(result.mean() - MEAN) < 4 * STD / 64
    assert abs(result.std() / STD - 1) < 0.03


def test_second_order_of_the_stochastic_solver_needs_fewer_steps():
    """Error of the standard deviation in 30 steps, with the noise of a whole population."""

    def error(solver):
        result = sampled(1, 128, jnp.linspace(-8, 8, 31), solver)
        return abs(result.std() / STD - 1)

    assert error("sde-dpm++") < error("ancestral") / 2


@pytest.mark.parametrize("solver", SUPERRES_SOLVERS)
def test_last_prediction_decides_the_image_at_time_zero(solver):
    """At t = 0 hardly any noise is left: the result is the predicted clean image."""
    target = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    result = solve(
        jnp.ones_like(target),
        denoise=lambda x, log_snr, previous: target,
        step_noise=jnp.ones_like(target).__mul__,
        log_snrs=log_snr_cosine(time_grid(5)),
        solver=solver,
    )
    np.testing.assert_allclose(result, target, atol=0.03)


def test_unknown_solver_is_named():
    with pytest.raises(InputError, match="'euler' is not one of ancestral, dpm"):
        solver_step(
            initial_state(jnp.zeros((1, 2, 2, 1))),
            jnp.int32(0),
            denoise=exact_denoiser,
            step_noise=lambda step: 0.0,
            log_snrs=jnp.zeros(3),
            solver="euler",
        )
