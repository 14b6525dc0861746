"""Stochastic second-order sampler of Karras et al. 2022 (algorithm 2), for networks trained with
the preconditioning of `gct_jax.corruption.elucidated`.

    sigma_i = ( sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)) )^rho,
    i = 0 .. N - 1,    sigma_N = 0                                                           (1)

Every step first raises the noise level by a factor 1 + gamma, then takes a Heun step down; the
step to zero is an Euler step.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gct_jax.array_types import Array, Images


def noise_levels(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, "levels"]:
    """Noise levels [steps + 1] of equation (1)."""
    ramp = jnp.linspace(0, 1, steps)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return jnp.append((ends[0] + ramp * (ends[1] - ends[0])) ** rho, 0.0)


def churn_factors(
    sigmas: Float[Array, "levels"],
    *,
    churn: float = 80.0,
    sigma_low: float = 0.05,
    sigma_high: float = 50.0,
) -> Float[Array, "levels"]:
    """gamma for every noise level: min(churn / steps, sqrt(2) - 1) between the two levels."""
    gamma = min(churn / (sigmas.shape[0] - 1), math.sqrt(2) - 1)
    return jnp.where((sigmas >= sigma_low) & (sigmas <= sigma_high), gamma, 0.0)


def elucidated_solve(
    noise: Images,
    *,
    denoise: Callable[[Array, Array], Array],
    step_noise: Callable[[Array], Array],
    sigmas: Float[Array, "levels"],
    gammas: Float[Array, "levels"],
    noise_scale: float = 1.003,
) -> Images:
    """Run the sampler as one compiled loop.

    Args:
      noise: [batch, height, width, channel], standard normal.
      denoise: images and noise level [batch] to the clean images, thresholded.
      step_noise: step number to standard normal noise.
      sigmas, gammas: [steps + 1], from `noise_levels` and `churn_factors`.
      noise_scale: standard deviation of the added noise.

    Returns:
      [batch, height, width, channel], clipped to [-1, 1].
    """

    def slope(x: Array, sigma: Array) -> Array:
        return (x - denoise(x, jnp.full(x.shape[0], sigma))) / sigma

    def step_down(step: Array, x: Array) -> Array:
        sigma, target = sigmas[step] * (1 + gammas[step]), sigmas[step + 1]
        extra = jnp.sqrt(jnp.maximum(sigma**2 - sigmas[step] ** 2, 0))
        x = x + extra * noise_scale * step_noise(step)
        first = slope(x, sigma)
        euler = x + (target - sigma) * first
        return jax.lax.cond(
            target > 0,
            lambda: x + (target - sigma) * (first + slope(euler, target)) / 2,
            lambda: euler,
        )

    x = jax.lax.fori_loop(0, sigmas.shape[0] - 1, step_down, noise * sigmas[0])
    return jnp.clip(x, -1, 1)
