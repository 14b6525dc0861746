"""Super-resolution of the slices of a volume, each one alone (GenerateCT, section 3.3).

A slice's noise depends on the key, its index and the step, so a volume comes out the same
whatever the batch size and the number of devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gct_jax.corruption.diffusion import dynamic_threshold, noise_schedule, predict_x0
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.sampling.diffusion_solvers import Denoiser, solve, time_grid


def make_denoiser(
    unet_apply: Callable[..., Array],
    conditions: dict[str, Array],
    *,
    guidance: float = 1.0,
    objective: str = "v",
    percentile: float | None = 0.95,
    self_cond: bool = False,
) -> Denoiser:
    """Prediction of the clean image with classifier-free guidance and thresholding.

    Args:
      unet_apply: called as unet_apply(x, log_snr, **conditions).
      conditions: keyword arguments of the U-Net, each with a leading batch axis.
      guidance: s in null + s (text - null); 1 skips the null branch, otherwise both branches run
        as one batch.
      objective: what the network predicts, "v", "noise" or "x_start".
      percentile: of dynamic thresholding; None clips to [-1, 1].
      self_cond: whether the network is given its previous prediction.
    """
    branches = 1 if guidance == 1 else 2

    def denoise(x: Array, log_snr: Array, previous: Array) -> Array:
        batch = x.shape[0]
        inputs = conditions | ({"self_cond": previous} if self_cond else {})
        inputs = {name: jnp.concatenate([value] * branches) for name, value in inputs.items()}
        if branches == 2:
            inputs["keep_text"] = jnp.arange(2 * batch) < batch
        levels = jnp.full(branches * batch, log_snr)
        prediction = unet_apply(jnp.concatenate([x] * branches), levels, **inputs)
        if branches == 2:
            with_text, without_text = jnp.split(prediction, 2)
            prediction = without_text + guidance * (with_text - without_text)
        x_start = predict_x0(objective, x, prediction, log_snr)
        if percentile is None:
            return jnp.clip(x_start, -1, 1)
        return dynamic_threshold(x_start, percentile)

    return denoise


def slice_noise(key: Array, index: Array, stream: int | Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise [slices, *shape] of one stream (an int) for slice numbers [slices]."""

    def one(i: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), stream), shape)

    return jax.vmap(one)(index)


def super_resolve_slices(
    unet_apply: Callable[..., Array],
    low_res: np.ndarray | Array,
    text: Array | None,
    text_mask: Array | None,
    key: Array,
    *,
    image_size: int,
    steps: int = 25,
    guidance: float = 1.0,
    solver: str = "ancestral",
    batch: int = 4,
    objective: str = "v",
    noise_schedule: str = "cosine",
    low_res_noise_schedule: str = "linear",
    low_res_noise_level: float = 0.1,
    percentile: float | None = 0.95,
    self_cond: bool = False,
    sharding: jax.sharding.Sharding | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Enlarge the slices of one volume.

    Args:
      unet_apply: `jax.tree_util.Partial(unet.apply, variables)`; a Partial keeps the weights an
        argument of the compiled program instead of constants in it.
      low_res: [slices, h, w, channel] in [-1, 1].
      text, text_mask: embeddings [1, length, dim] and bool [1, length] of the volume's prompt, or
        None for a U-Net without text.
      key: typed random key.
      image_size: side of the output in pixels.
      steps, guidance, solver: see `diffusion_solvers` and `make_denoiser`.
      batch: slices per network call; the last batch is filled up and cut.
      objective, noise_schedule, low_res_noise_schedule, low_res_noise_level, percentile,
        self_cond: as in training, see `DiffusionConfig`.
      sharding: placement of a batch of slices on several devices, None for the default device.
      on_batch: called with the number of slices finished.

    Returns:
      [slices, image_size, image_size, channel] float32 in [-1, 1].
    """
    run = functools.partial(
        _super_resolve_batch,
        image_size=image_size,
        steps=steps,
        guidance=guidance,
        solver=solver,
        objective=objective,
        schedule=noise_schedule,
        low_res_schedule=low_res_noise_schedule,
        low_res_level=low_res_noise_level,
        percentile=percentile,
        self_cond=self_cond,
    )
    if not isinstance(unet_apply, jax.tree_util.Partial):
        unet_apply = jax.tree_util.Partial(unet_apply)
    prompt = {"text": text, "text_mask": text_mask}
    prompt = {name: value for name, value in prompt.items() if value is not None}
    low_res = np.asarray(low_res, np.float32)
    finished = []
    for first in range(0, len(low_res), batch):
        index = np.minimum(np.arange(first, first + batch), len(low_res) - 1)
        inputs = jax.device_put((low_res[index], index), sharding)
        count = min(batch, len(low_res) - first)
        finished.append(np.asarray(run(unet_apply, *inputs, prompt, key))[:count])
        if on_batch is not None:
            on_batch(first + count)
    return np.concatenate(finished)


@functools.partial(
    jax.jit,
    static_argnames=(
        "image_size",
        "steps",
        "guidance",
        "solver",
        "objective",
        "schedule",
        "low_res_schedule",
        "low_res_level",
        "percentile",
        "self_cond",
    ),
)
def _super_resolve_batch(
    unet_apply: Callable[..., Array],
    low_res: Array,
    index: Array,
    prompt: dict[str, Array],
    key: Array,
    *,
    image_size: int,
    steps: int,
    guidance: float,
    solver: str,
    objective: str,
    schedule: str,
    low_res_schedule: str,
    low_res_level: float,
    percentile: float | None,
    self_cond: bool,
) -> Array:
    """One batch of slices, numbered `index`, from first to last step."""
    batch, *_, channels = low_res.shape
    shape = (image_size, image_size, channels)
    level = jnp.full(batch, low_res_level)
    condition, condition_log_snr = noised_low_res(
        low_res, slice_noise(key, index, 0, shape), level, low_res_schedule
    )
    conditions: dict[str, Any] = {"low_res": condition, "low_res_log_snr": condition_log_snr}
    for name, value in prompt.items():
        conditions[name] = jnp.broadcast_to(value, (batch, *value.shape[1:]))
    return solve(
        slice_noise(key, index, 1, shape),
        denoise=make_denoiser(
            unet_apply,
            conditions,
            guidance=guidance,
            objective=objective,
            percentile=percentile,
            self_cond=self_cond,
        ),
        step_noise=lambda step: slice_noise(key, index, step + 2, shape),
        log_snrs=noise_schedule(schedule)(time_grid(steps)),
        solver=solver,
    )
