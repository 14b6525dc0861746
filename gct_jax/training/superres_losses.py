"""Losses of the super-resolution stage, as pure functions of all their random draws.

    L = mean_i  w(lambda_i) mean_pixels || F(x_t, lambda_t, low-res, text) - target ||^2     (1)

with target v, noise or x_0 and the p2 weight w(lambda) = (k + exp(lambda))^-gamma; for the v
objective with k = 1 and gamma = 0.5 the weight is sigma_t.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gct_jax.corruption import elucidated
from gct_jax.corruption.diffusion import (
    noise_schedule,
    p2_weight,
    per_image,
    predict_x0,
    q_sample,
    training_target,
)


def mean_per_image(values: Array) -> Array:
    """[batch, ...] to [batch], in float32."""
    return values.astype(jnp.float32).mean(axis=tuple(range(1, values.ndim)))


def superres_loss(
    unet_apply: Callable[..., Array],
    high_res: Array,
    conditions: dict[str, Any],
    *,
    time: Array,
    noise: Array,
    objective: str = "v",
    schedule: str = "cosine",
    p2_loss_weight_gamma: float = 0.5,
    p2_loss_weight_k: float = 1.0,
    self_condition: Array | None = None,
) -> Array:
    """Equation (1).

    Args:
      unet_apply: called as unet_apply(x, log_snr, **conditions).
      high_res: [batch, height, width, channel] in [-1, 1].
      conditions: keyword arguments of the U-Net: `low_res` and `low_res_log_snr` from
        `corruption.low_res.noised_low_res`, `text`, `text_mask`, and `keep_text` for
        conditioning dropout.
      time: [batch], uniform in [0, 1).
      noise: like `high_res`, standard normal.
      objective: "v", "noise" or "x_start".
      schedule: "cosine" or "linear".
      p2_loss_weight_gamma, p2_loss_weight_k: constants of the weight.
      self_condition: [batch] bool, for which images the network is first asked for x_0 and given
        the answer (Chen et al. 2022); None for a network without self-conditioning.

    Returns:
      scalar float32.
    """
    log_snr = noise_schedule(schedule)(time)
    x_t = q_sample(high_res, noise, log_snr)
    if self_condition is not None:
        first = unet_apply(x_t, log_snr, **conditions)
        x_start = jax.lax.stop_gradient(predict_x0(objective, x_t, first, log_snr))
        given = jnp.where(per_image(self_condition, x_t), x_start, 0)
        conditions = conditions | {"self_cond": given}
    prediction = unet_apply(x_t, log_snr, **conditions)
    target = training_target(objective, high_res, noise, log_snr)
    weight = p2_weight(log_snr, p2_loss_weight_gamma, p2_loss_weight_k)
    return jnp.mean(weight * mean_per_image(jnp.square(prediction - target)))


def elucidated_loss(
    unet_apply: Callable[..., Array],
    high_res: Array,
    conditions: dict[str, Any],
    *,
    sigma: Array,
    noise: Array,
    sigma_data: float = 0.5,
) -> Array:
    """Weighted denoising error of Karras et al. 2022, equation 8, for networks to be sampled with
    `sampling.elucidated`; sigma [batch] from `corruption.elucidated.draw_sigma`, noise standard
    normal like `high_res`. Returns a scalar."""
    x = high_res + per_image(sigma, high_res) * noise
    denoised = elucidated.denoise(
        lambda scaled, level: unet_apply(scaled, level, **conditions), x, sigma, sigma_data
    )
    errors = mean_per_image(jnp.square(denoised - high_res))
    return jnp.mean(elucidated.loss_weight(sigma, sigma_data) * errors)
