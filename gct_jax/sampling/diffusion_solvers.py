"""From noise to image with a network that predicts the clean image.

Times fall from 1 to 0. With lambda the log SNR, alpha and sigma the amplitudes at a time t and
the next time s, and x_0 the clean image predicted from x_t:

  ancestral (Ho et al. 2020): draw x_s from the posterior q(x_s | x_t, x_0); no noise at the end.
  dpm++ (DPM-Solver++(2M), Lu et al. 2022, algorithm 2), which needs fewer steps:

    h = (lambda_s - lambda_t) / 2,   r = h_before / h
    D = x_0 + (x_0 - x_0 before) / (2 r)         (D = x_0 in the first and the last step)    (1)
    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) D                                  (2)

  sde-dpm++ (SDE-DPM-Solver++(2M), the same paper): ancestral, with D of (1) in place of x_0.

`solve` runs all steps in one compiled loop; `solver_step` is one of them, for callers that want
to watch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gct_jax.array_types import Array, Images
from gct_jax.config import SUPERRES_SOLVERS
from gct_jax.corruption.diffusion import alpha_sigma, posterior
from gct_jax.errors import InputError

# x_t [b, h, w, c], scalar log SNR, previous x_0 -> x_0
Denoiser = Callable[[Array, Array, Array], Array]
# step number -> noise [b, h, w, c]
StepNoise = Callable[[Array], Array]


class SolverState(NamedTuple):
    """The current image and the last prediction of the clean one (zeros at the start)."""

    x: Array
    x_start: Array


def time_grid(steps: int) -> Float[Array, "times"]:
    """Times [steps + 1], evenly spaced from 1 to 0."""
    return jnp.linspace(1.0, 0.0, steps + 1)


def initial_state(noise: Array) -> SolverState:
    """State before the first step, from standard normal noise."""
    return SolverState(noise, jnp.zeros_like(noise))


def solver_step(
    state: SolverState,
    step: Array,
    *,
    denoise: Denoiser,
    step_noise: StepNoise,
    log_snrs: Float[Array, "times"],
    solver: str,
) -> SolverState:
    """One step from time number `step` to the next.

    Args:
      state: images [batch, height, width, channel].
      step: int32 scalar from 0 to len(log_snrs) - 2.
      denoise: predicts the clean image, thresholded.
      step_noise: standard normal noise of a step; not called by "dpm++".
      log_snrs: [steps + 1], ascending.
      solver: one of SUPERRES_SOLVERS.

    Raises:
      InputError: another solver.
    """
    if solver not in SUPERRES_SOLVERS:
        raise InputError(f"solver {solver!r} is not one of {', '.join(SUPERRES_SOLVERS)}")
    last = step == log_snrs.shape[0] - 2
    log_snr_t, log_snr_s = log_snrs[step], log_snrs[step + 1]
    x_start = denoise(state.x, log_snr_t, state.x_start)
    half_step = (log_snr_s - log_snr_t) / 2
    half_step_before = (log_snr_t - log_snrs[jnp.maximum(step - 1, 0)]) / 2  # 0 at first
    first_order = last | (step == 0)
    slope = jnp.where(first_order, 0, half_step / (2 * jnp.where(first_order, 1, half_step_before)))
    direction = x_start + slope * (x_start - state.x_start)  # (1)
    if solver != "dpm++":
        clean = x_start if solver == "ancestral" else direction
        mean, _, log_variance = posterior(clean, state.x, log_snr_t, log_snr_s)
        noise = jnp.exp(0.5 * log_variance) * step_noise(step)
        return SolverState(jnp.where(last, mean, mean + noise), x_start)
    _, sigma_t = alpha_sigma(log_snr_t)
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    x = sigma_s / sigma_t * state.x - alpha_s * jnp.expm1(-half_step) * direction  # (2)
    return SolverState(x, x_start)


def solve(
    noise: Images,
    *,
    denoise: Denoiser,
    step_noise: StepNoise,
    log_snrs: Float[Array, "times"],
    solver: str,
) -> Images:
    """All steps as one compiled loop; arguments as for `solver_step`.

    Returns:
      the image at the last time, [batch, height, width, channel], clipped to [-1, 1].
    """

    def body(step: Array, state: SolverState) -> SolverState:
        return solver_step(
            state,
            step,
            denoise=denoise,
            step_noise=step_noise,
            log_snrs=log_snrs,
            solver=solver,
        )

    final = jax.lax.fori_loop(0, log_snrs.shape[0] - 1, body, initial_state(noise))
    return jnp.clip(final.x, -1, 1)
