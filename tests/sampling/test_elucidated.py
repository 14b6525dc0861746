"""Elucidated diffusion against recorded reference values and the exact Gaussian solution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase, load_unet, quick_jit
from jax.tree_util import Partial
from tiny_model import quick_compilation, random_variables, tiny_config

from gct_jax.components import build_component
from gct_jax.config import DiffusionConfig, SamplingConfig
from gct_jax.corruption import elucidated
from gct_jax.corruption.diffusion import dynamic_threshold
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.sampling.elucidated import churn_factors, elucidated_solve, noise_levels
from gct_jax.sampling.settings import superres_settings
from gct_jax.sampling.superres import slice_noise, super_resolve_slices


@pytest.fixture(scope="module")
def case():
    return GoldenCase("elucidated")


def test_coefficients_match_golden(case):
    (sigma,) = case.inputs("sigma")
    scale = elucidated.preconditioning(sigma)
    case.check("c_skip", scale.skip)
    case.check("c_out", scale.out)
    case.check("c_in", scale.input, rtol=1e-6)
    case.check("c_noise", scale.noise)
    case.check("loss_weight", elucidated.loss_weight(sigma), rtol=1e-6)


@pytest.mark.parametrize("steps", [8, 32])
def test_noise_levels_match_golden(case, steps):
    sigmas = noise_levels(steps)
    case.check(f"sample_schedule_{steps}", sigmas, rtol=1e-6)
    case.check(f"gammas_{steps}", churn_factors(sigmas))


@pytest.mark.long
def test_denoiser_and_sampling_match_golden(case):
    unet_apply = load_unet(case, "unets.1.")
    x, low_res, noise, step_noise = case.inputs("x", "lowres_cond_img", "init_noise", "step_noise")
    level, text, mask, sigma = case.inputs(
        "lowres_noise_times", "text_embeds", "text_mask", "sigma_b"
    )
    conditions = {"low_res": low_res, "low_res_log_snr": level, "text": text, "text_mask": mask}

    @quick_jit
    def run(unet_apply):
        def denoise(x, sigma):
            return elucidated.denoise(
                lambda scaled, level: unet_apply(scaled, level, **conditions), x, sigma
            )

        sigmas = noise_levels(8)
        sample = elucidated_solve(
            jnp.asarray(noise),
            denoise=lambda x, sigma: dynamic_threshold(denoise(x, sigma)),
            step_noise=lambda step: jnp.asarray(step_noise)[step],
            sigmas=sigmas,
            gammas=churn_factors(sigmas),
        )
        return denoise(x, sigma), (sample + 1) / 2

    denoised, sample = run(unet_apply)
    case.check("preconditioned", denoised)
    case.check("sample_output", sample)


def test_sampler_reproduces_gaussian_data():
    mean, std, key, shape = 0.2, 0.1, jax.random.key(0), (1, 64, 64, 1)

    def exact(x, sigma):
        sigma = sigma[:, None, None, None]
        return mean + std**2 / (std**2 + sigma**2) * (x - mean)

    sigmas = noise_levels(80)
    result = elucidated_solve(
        jax.random.normal(key, shape),
        denoise=exact,
        step_noise=lambda step: jax.random.normal(jax.random.fold_in(key, step), shape),
        sigmas=sigmas,
        gammas=churn_factors(sigmas),
        noise_scale=1.0,
    )
    assert abs(result.mean() - mean) < 0.01
    assert abs(result.std() / std - 1) < 0.05


def test_training_noise_levels_are_log_normal():
    logs = np.log(elucidated.draw_sigma(jax.random.key(1), 4096))
    assert abs(logs.mean() + 1.2) < 0.08
    assert abs(logs.std() - 1.2) < 0.06


@pytest.mark.parametrize(("churn", "gamma"), [(2.0, 0.2), (0.0, 0.0), (80.0, 2**0.5 - 1)])
def test_churn_is_shared_among_the_steps(churn, gamma):
    sigmas = noise_levels(10)
    found = np.asarray(churn_factors(sigmas, churn=churn))
    between = (np.asarray(sigmas) >= 0.05) & (np.asarray(sigmas) <= 50)
    np.testing.assert_allclose(found[between], gamma, rtol=1e-6)
    assert between.any() and not found[~between].any()


@pytest.mark.slow
def test_a_model_of_the_elucidated_process_is_sampled_by_this_solver():
    """Against the solver called with the network's own equations, one slice at a time."""
    config = dataclasses.replace(
        tiny_config(), diffusion=DiffusionConfig(image_size=32, process="elucidated")
    )
    low = np.random.default_rng(0).uniform(-1, 1, (1, 2, 16, 16, 1)).astype(np.float32)
    keys, text, mask = jax.random.key(3)[None], jnp.ones((1, 48, 16)), jnp.ones((1, 48), bool)
    unet = build_component(config, "superres")
    apply = Partial(unet.apply, random_variables(config, "superres"))
    settings = superres_settings(config, SamplingConfig(superres_steps=3, superres_guidance=2.0))
    with quick_compilation():
        made = super_resolve_slices(apply, low, text, mask, keys, settings)
    sigmas, level = noise_levels(settings.steps), jnp.full(1, config.diffusion.low_res_noise_level)

    @quick_jit
    def alone(apply, low, number):
        noise = functools.partial(slice_noise, keys, number, shape=(32, 32, 1))
        condition, log_snr = noised_low_res(low, noise(0), level, "linear")
        given = {"low_res": condition, "low_res_log_snr": log_snr, "text": text, "text_mask": mask}

        def denoise(x, sigma):
            def network(scaled, log_sigma):
                cond = apply(scaled, log_sigma, **given)
                null = apply(scaled, log_sigma, **given, keep_text=jnp.array([False]))
                return null + 2.0 * (cond - null)

            return dynamic_threshold(elucidated.denoise(network, x, sigma), 0.95)

        return elucidated_solve(
            noise(1),
            denoise=denoise,
            step_noise=lambda step: noise(2 + step),
            sigmas=sigmas,
            gammas=churn_factors(sigmas),
        )

    for number in range(2):
        expected = alone(apply, jnp.asarray(low[:, number]), jnp.array([number]))
        np.testing.assert_allclose(made[0, number], expected[0], atol=2e-4)
