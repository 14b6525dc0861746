"""What the super-resolution study runs and measures.

Solvers are compared by the error that few steps make: the distance to the solution in 1,000 steps
of the same problem. For the deterministic solver that is the same noise to start from. Ancestral
sampling also draws noise in every step. Its posterior steps for a fixed clean image are a Wiener
process W that runs in the signal-to-noise ratio R = exp(lambda): a step from R_t to R_s that skips
the fine steps R_t = r_0 < r_1 < ... < r_m = R_s makes the same draw as they do if its noise is

    e = (W(R_s) - W(R_t)) / sqrt(R_s - R_t) = sum_j sqrt((r_j - r_(j-1)) / (r_m - r_0)) e_j    (1)

So both solvers follow one path of noise in any number of steps that divides the fine ones, and
with 1,000 steps the distance is zero for both.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gct_jax.config import DiffusionConfig
from gct_jax.corruption.diffusion import noise_schedule
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.errors import ConfigError
from gct_jax.evaluation.image_quality import psnr, ssim
from gct_jax.sampling.diffusion_solvers import SolverState, initial_state, solver_step, time_grid
from gct_jax.sampling.settings import SuperresSettings
from gct_jax.sampling.superres import (
    FIRST_STEP_STREAM,
    LOW_RES_STREAM,
    START_STREAM,
    make_denoiser,
    slice_noise,
)


class Slices(NamedTuple):
    """Slices to enlarge, one per row: low_res [n, h, w, 1] in [-1, 1], numbers [n], keys [n] of
    their volumes, and the prompts' text [n, l, e] and text_mask [n, l]."""

    low_res: Array
    numbers: Array
    keys: Array
    text: Array
    text_mask: Array


def solve_on_path(
    unet_apply: Callable[..., Array],
    slices: Slices,
    diffusion: DiffusionConfig,
    *,
    solver: str,
    guidance: float,
    steps: int,
    fine_steps: int,
) -> np.ndarray:
    """Slices enlarged in `steps` steps along the path of noise of `fine_steps`, equation (1).

    Returns:
      [n, size, size, 1] in [-1, 1]. One program serves all numbers of steps.
    """
    merged, rest = divmod(fine_steps, steps)
    if rest:
        raise ConfigError(f"{steps} steps do not divide {fine_steps}")
    fine = noise_schedule(diffusion.noise_schedule)(time_grid(fine_steps))
    # Right-aligned: before the first step the log SNR is -inf, which turns DPM-Solver++'s
    # extrapolation from the step before off, as it should be.
    log_snrs = jnp.concatenate([jnp.full(fine_steps - steps, -jnp.inf), fine[::merged]])
    snr = np.exp(np.asarray(fine, np.float64))
    share = np.diff(snr).reshape(steps, merged) / np.diff(snr[::merged])[:, None]
    weights = jnp.asarray(np.sqrt(share).reshape(-1), jnp.float32)
    options = {"diffusion": diffusion, "solver": solver, "guidance": guidance}
    return np.asarray(_solve(unet_apply, slices, log_snrs, weights, merged, **options))


@functools.partial(jax.jit, static_argnames=("diffusion", "solver", "guidance"))
def _solve(
    unet_apply: Callable[..., Array],
    slices: Slices,
    log_snrs: Array,
    weights: Array,
    merged: int,
    *,
    diffusion: DiffusionConfig,
    solver: str,
    guidance: float,
) -> Array:
    fine_steps = len(weights)
    size = diffusion.image_size
    noise = functools.partial(
        slice_noise, slices.keys, slices.numbers, shape=(size, size, slices.low_res.shape[-1])
    )
    level = jnp.full(len(slices.low_res), diffusion.low_res_noise_level)
    low_res, low_res_log_snr = noised_low_res(
        slices.low_res, noise(LOW_RES_STREAM), level, diffusion.low_res_noise_schedule
    )
    conditions = {
        "low_res": low_res,
        "low_res_log_snr": low_res_log_snr,
        "text": slices.text,
        "text_mask": slices.text_mask,
    }
    start = noise(START_STREAM)
    first = fine_steps - fine_steps // merged

    def step_noise(step: Array) -> Array:
        begin = (step - first) * merged

        def add(fine: Array, total: Array) -> Array:
            return total + weights[fine] * noise(FIRST_STEP_STREAM + fine)

        return jax.lax.fori_loop(begin, begin + merged, add, jnp.zeros_like(start))

    denoise = make_denoiser(
        unet_apply,
        conditions,
        SuperresSettings(diffusion, guidance=guidance),
    )

    def body(step: Array, state: SolverState) -> SolverState:
        return solver_step(
            state, step, denoise=denoise, step_noise=step_noise, log_snrs=log_snrs, solver=solver
        )

    final = jax.lax.fori_loop(first, fine_steps, body, initial_state(start))
    return jnp.clip(final.x, -1, 1)


def rmse(first_hu: np.ndarray, second_hu: np.ndarray) -> float:
    """Root mean square difference in HU."""
    difference = np.asarray(first_hu, np.float64) - second_hu
    return float(np.sqrt(np.mean(difference**2)))


def gradient_energy(slices_hu: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels in slices [..., h, w], which blur lowers."""
    slices_hu = np.asarray(slices_hu, np.float64)
    return float(sum(np.mean(np.diff(slices_hu, axis=axis) ** 2) for axis in (-1, -2)))


def agreement(true_hu: np.ndarray, made_hu: np.ndarray) -> dict[str, Any]:
    """Slices [n, h, w] against the true ones; `sharpness` is the ratio of gradient energies."""
    pairs = list(zip(true_hu, made_hu, strict=True))
    return {
        "rmse_hu": rmse(true_hu, made_hu),
        "psnr": float(np.mean([psnr(*pair) for pair in pairs])),
        "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
        "sharpness": gradient_energy(made_hu) / gradient_energy(true_hu),
    }


def depth_agreement(true_hu: np.ndarray, made_hu: np.ndarray) -> dict[str, Any]:
    """Volumes [cases, depth, h, w] against the true ones.

    `step_rmse_hu`: error of the differences between neighbouring slices, which is what flickers.
    `step_energy`: mean square of those differences over that of the true ones.
    `step_kept`: share of the true differences that is found in the made ones (slope of the
    regression); smearing along the depth lowers it, flicker does not. Others as in `agreement`.
    """
    true_steps, made_steps = (
        np.diff(np.asarray(volumes, np.float64), axis=1) for volumes in (true_hu, made_hu)
    )
    slices = [volumes.reshape(-1, *volumes.shape[2:]) for volumes in (true_hu, made_hu)]
    return {
        "step_rmse_hu": rmse(true_steps, made_steps),
        "step_energy": float(np.mean(made_steps**2) / np.mean(true_steps**2)),
        "step_kept": float(np.mean(made_steps * true_steps) / np.mean(true_steps**2)),
        **agreement(*slices),
    }
