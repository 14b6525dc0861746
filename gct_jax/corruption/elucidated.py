"""Noising and preconditioning of Karras et al. 2022, "Elucidating the Design Space" (EDM).

With noise level sigma, x = x_0 + sigma eps, and a network F, the denoiser is (their equation 7)

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)                                        (1)
    c_skip = s^2 / (sigma^2 + s^2),     c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / sqrt(sigma^2 + s^2),     c_noise = ln(sigma) / 4,

where s = `sigma_data` is the standard deviation of the images.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gct_jax.array_types import Images, LogSnr, PerImage, RandomKey
from gct_jax.corruption.diffusion import per_image


class Preconditioning(NamedTuple):
    """The four coefficients of equation (1)."""

    skip: Array
    out: Array
    input: Array
    noise: Array


def preconditioning(sigma: Array, sigma_data: float = 0.5) -> Preconditioning:
    """Coefficients of equation (1) for noise levels of any shape."""
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / jnp.sqrt(total),
        input=1 / jnp.sqrt(total),
        noise=jnp.log(jnp.maximum(sigma, 1e-20)) / 4,
    )


def denoise(
    network: Callable[[Array, Array], Array], x: Images, sigma: PerImage, sigma_data: float = 0.5
) -> Images:
    """Equation (1) for images x [batch, h, w, channel] and noise levels sigma [batch]; the network
    is called with the scaled images and c_noise [batch]."""
    noise = preconditioning(sigma, sigma_data).noise
    scale = preconditioning(per_image(sigma, x), sigma_data)
    return scale.skip * x + scale.out * network(scale.input * x, noise)


def loss_weight(sigma: LogSnr, sigma_data: float = 0.5) -> LogSnr:
    """1 / c_out^2, which gives every noise level the same initial loss."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def draw_sigma(key: RandomKey, batch: int, mean: float = -1.2, std: float = 1.2) -> PerImage:
    """Training noise levels [batch], log-normal."""
    return jnp.exp(mean + std * jax.random.normal(key, (batch,)))
