"""Super-resolution of the slices of volumes, each one alone (GenerateCT, section 3.3).

A slice's noise depends on the volume's key, the slice's index and the step, so a volume comes out
the same whatever is computed beside it, the batch size and the number of devices.

The reference draws independent noise for every slice, so what the network makes of its noise
changes from slice to slice. Here noise may be correlated along the depth: with independent standard
normal fields e_0, e_1, ..., a new one every c slices, slice i gets

    n_i = cos(pi/2 (z - k)) e_k + sin(pi/2 (z - k)) e_(k+1),   z = i / c,  k = floor(z)        (1)

Every slice alone still sees white noise of variance one, as in training. Slices between the same
two fields have the correlation cos(pi/2 (i - j) / c), slices 2 c apart none; c = 1 is the
reference's independent noise.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from gct_jax.array_types import Array, Images, Keys
from gct_jax.config import DiffusionConfig
from gct_jax.corruption import elucidated
from gct_jax.corruption.diffusion import dynamic_threshold, noise_schedule, predict_x0
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.sampling.diffusion_solvers import Denoiser, solve, time_grid
from gct_jax.sampling.elucidated import churn_factors, elucidated_solve, noise_levels
from gct_jax.sampling.guidance import guided
from gct_jax.sampling.settings import SuperresSettings

# Streams of a slice's noise: in the low-resolution image, at the start, in step 0, 1, ...
LOW_RES_STREAM, START_STREAM, FIRST_STEP_STREAM = 0, 1, 2

T = TypeVar("T")


def guided_network(
    unet_apply: Callable[..., Array], conditions: dict[str, Array], settings: SuperresSettings
) -> Denoiser:
    """(images, noise level, previous prediction) to what the U-Net predicts, guided by the text.

    With guidance both branches run as one batch.

    Args:
      unet_apply: called as unet_apply(x, log_snr, **conditions).
      conditions: keyword arguments of the U-Net, each with a leading batch axis.
    """
    branches = 1 if settings.guidance == 1 else 2

    def predict(x: Array, level: Array, previous: Array) -> Array:
        batch = x.shape[0]
        inputs = conditions | ({"self_cond": previous} if settings.self_cond else {})
        inputs = {name: jnp.concatenate([value] * branches) for name, value in inputs.items()}
        if branches == 2:
            inputs["keep_text"] = jnp.arange(2 * batch) < batch
        levels = jnp.broadcast_to(level, branches * batch)
        prediction = unet_apply(jnp.concatenate([x] * branches), levels, **inputs)
        if branches == 1:
            return prediction
        cond, null = jnp.split(prediction, 2)
        return guided(null, cond, settings.guidance)

    return predict


def make_denoiser(
    unet_apply: Callable[..., Array], conditions: dict[str, Array], settings: SuperresSettings
) -> Denoiser:
    """Prediction of the clean image, thresholded. Arguments as `guided_network`."""
    predict = guided_network(unet_apply, conditions, settings)

    def denoise(x: Array, log_snr: Array, previous: Array) -> Array:
        prediction = predict(x, log_snr, previous)
        x_start = predict_x0(settings.diffusion.objective, x, prediction, log_snr)
        return _thresholded(x_start, settings.diffusion)

    return denoise


def make_elucidated_denoiser(
    unet_apply: Callable[..., Array], conditions: dict[str, Array], settings: SuperresSettings
) -> Callable[[Array, Array], Array]:
    """The same of the elucidated process: (images, noise levels sigma [batch]) to clean images."""
    predict = guided_network(unet_apply, conditions, settings)

    def denoise(x: Array, sigma: Array) -> Array:
        def network(scaled: Array, level: Array) -> Array:
            # one level for all images, so for both branches of guidance too
            return predict(scaled, level[0], jnp.zeros_like(x))

        return _thresholded(elucidated.denoise(network, x, sigma), settings.diffusion)

    return denoise


def _thresholded(x_start: Array, diffusion: DiffusionConfig) -> Array:
    if not diffusion.dynamic_thresholding:
        return jnp.clip(x_start, -1, 1)
    return dynamic_threshold(x_start, diffusion.dynamic_thresholding_percentile)


def slice_noise(
    keys: Keys,
    index: Int[Array, "batch"],
    stream: int | Array,
    shape: tuple[int, ...],
    correlation: float = 1.0,
) -> Float[Array, "batch ..."]:
    """Standard normal noise [rows, *shape], equation (1).

    Args:
      keys: typed random keys [rows], one per row's volume.
      index: slice numbers int32 [rows].
      stream: which of the independent noises.
      correlation: slices after which the noise is an independent one, at least 1.
    """

    def field(key: Array, number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, number), stream), shape)

    number = jnp.floor(index / correlation).astype(jnp.int32)
    angle = (index / correlation - number)[:, None, None, None] * (math.pi / 2)
    first, second = jax.vmap(field)(keys, number), jax.vmap(field)(keys, number + 1)
    return jnp.cos(angle) * first + jnp.sin(angle) * second


def super_resolve_slices(
    unet_apply: Callable[..., Array],
    low_res: Float[Array, "volumes slices low_height low_width channels"]
    | Float[np.ndarray, "volumes slices low_height low_width channels"],
    text: Float[Array, "volumes length dim"] | None,
    text_mask: Bool[Array, "volumes length"] | None,
    keys: Key[Array, "volumes"],
    settings: SuperresSettings,
    *,
    batch: int = 4,
    sharding: jax.sharding.Sharding | None = None,
    at_once: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "volumes slices height width channels"]:
    """Enlarge the slices of volumes; a batch may hold slices of several.

    Args:
      unet_apply: `jax.tree_util.Partial(unet.apply, variables)`; a Partial keeps the weights an
        argument of the compiled program instead of constants in it.
      low_res: [volumes, slices, h, w, channel] in [-1, 1].
      text, text_mask: embeddings [volumes, length, dim] and bool [volumes, length] of the prompts,
        or None for a U-Net without text.
      keys: typed random keys [volumes].
      batch: slices per network call; the last batch is filled up and cut.
      sharding: placement of a batch of slices on several devices, None for the default device.
      at_once: batches that run at the same time. On a CPU, whose cores a small network does not
        keep busy, two of one slice are faster than one of two.
      on_batch: called with the number of slices finished.

    Returns:
      [volumes, slices, size, size, channel] float32 in [-1, 1]; `settings.diffusion` has the size.
    """
    if not isinstance(unet_apply, jax.tree_util.Partial):
        unet_apply = jax.tree_util.Partial(unet_apply)
    given = {"text": text, "text_mask": text_mask}
    prompts = {name: value for name, value in given.items() if value is not None}
    stacks = np.asarray(low_res, np.float32)
    volumes, depth = stacks.shape[:2]

    def batch_from(first: int) -> np.ndarray:
        rows = np.minimum(np.arange(first, first + batch), volumes * depth - 1)
        volume, index = np.divmod(rows, depth)
        prompt = {name: value[volume] for name, value in prompts.items()}
        inputs = jax.device_put((stacks[volume, index], index, prompt, keys[volume]), sharding)
        return np.asarray(super_resolve_batch(unet_apply, *inputs, settings))[
            : volumes * depth - first
        ]

    finished: list[np.ndarray] = []
    for images in first_then_together(batch_from, range(0, volumes * depth, batch), at_once):
        finished.append(images)
        if on_batch is not None:
            on_batch(sum(map(len, finished)))
    return np.concatenate(finished).reshape(volumes, depth, *finished[0].shape[1:])


def first_then_together(
    fn: Callable[[int], T], numbers: Iterable[int], at_once: int
) -> Iterator[T]:
    """`fn` of each number, in their order: of the first alone, so that what it compiles is compiled
    once, then of `at_once` at a time. After an error or a stop no further one is begun."""
    rest = iter(numbers)
    for first in rest:
        yield fn(first)
        break
    if at_once == 1:
        yield from map(fn, rest)
        return
    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield from pool.map(fn, rest)
        finally:
            pool.shutdown(cancel_futures=True)


@functools.partial(jax.jit, static_argnames="settings")
def super_resolve_batch(
    unet_apply: Callable[..., Array],
    low_res: Float[Array, "batch low_height low_width channels"],
    index: Int[Array, "batch"],
    prompt: dict[str, Array],
    keys: Keys,
    settings: SuperresSettings,
) -> Images:
    """One batch of slices, from first to last step; all arrays but the weights have their axis.

    Nothing depends on the number of volumes, so one executable serves all.
    """
    batch, *_, channels = low_res.shape
    diffusion = settings.diffusion
    noise = functools.partial(
        slice_noise,
        keys,
        index,
        shape=(diffusion.image_size, diffusion.image_size, channels),
        correlation=settings.noise_correlation,
    )
    level = jnp.full(batch, diffusion.low_res_noise_level)
    condition, condition_log_snr = noised_low_res(
        low_res, noise(LOW_RES_STREAM), level, diffusion.low_res_noise_schedule
    )
    conditions: dict[str, Any] = {"low_res": condition, "low_res_log_snr": condition_log_snr}
    conditions |= prompt

    def step_noise(step: Array) -> Array:
        return noise(FIRST_STEP_STREAM + step)

    if diffusion.process == "elucidated":
        sigmas = noise_levels(settings.steps)
        return elucidated_solve(
            noise(START_STREAM),
            denoise=make_elucidated_denoiser(unet_apply, conditions, settings),
            step_noise=step_noise,
            sigmas=sigmas,
            gammas=churn_factors(sigmas),
        )
    return solve(
        noise(START_STREAM),
        denoise=make_denoiser(unet_apply, conditions, settings),
        step_noise=step_noise,
        log_snrs=noise_schedule(diffusion.noise_schedule)(time_grid(settings.steps)),
        solver=settings.solver,
    )
