"""Super-resolution of the slices of volumes, each one alone (GenerateCT, section 3.3).

A slice's noise depends on the volume's key, the slice's index and the step, so a volume comes out
the same whatever is computed beside it, the batch size and the number of devices.

The reference draws independent noise for every slice, so what the network makes of its noise
changes from slice to slice. Here noise may turn gradually with depth: with independent standard
normal fields e_0, e_1, ..., of which each one is exactly reached after `turn` slices, slice i gets

    n_i = cos(pi/2 (z - k)) e_k + sin(pi/2 (z - k)) e_(k+1),   z = i / turn,  k = floor(z)     (1)

Every slice alone still sees white noise of variance one, as in training. Slices between the same
two fields have the correlation cos(pi/2 (i - j) / turn), slices 2 turns apart none; turn = 1 is
the reference's independent noise.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gct_jax.corruption.diffusion import dynamic_threshold, noise_schedule, predict_x0
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.sampling.diffusion_solvers import Denoiser, solve, time_grid

# Streams of a slice's noise: in the low-resolution image, at the start, in step 0, 1, ...
LOW_RES_STREAM, START_STREAM, FIRST_STEP_STREAM = 0, 1, 2

T = TypeVar("T")


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


def slice_noise(
    keys: Array,
    index: Array,
    stream: int | Array,
    shape: tuple[int, ...],
    turn: float | Array = 1.0,
) -> Array:
    """Standard normal noise [rows, *shape], equation (1).

    Args:
      keys: typed random keys [rows], one per row's volume.
      index: slice numbers int32 [rows].
      stream: which of the independent noises.
      turn: slices after which the noise is an independent one, at least 1.
    """

    def field(key: Array, number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, number), stream), shape)

    number = jnp.floor(index / turn).astype(jnp.int32)
    angle = (index / turn - number)[:, None, None, None] * (math.pi / 2)
    first, second = jax.vmap(field)(keys, number), jax.vmap(field)(keys, number + 1)
    return jnp.cos(angle) * first + jnp.sin(angle) * second


def super_resolve_slices(
    unet_apply: Callable[..., Array],
    low_res: np.ndarray | Array,
    text: Array | None,
    text_mask: Array | None,
    keys: Array,
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
    noise_turn: float = 1.0,
    sharding: jax.sharding.Sharding | None = None,
    at_once: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Enlarge the slices of volumes; a batch may hold slices of several.

    Args:
      unet_apply: `jax.tree_util.Partial(unet.apply, variables)`; a Partial keeps the weights an
        argument of the compiled program instead of constants in it.
      low_res: [volumes, slices, h, w, channel] in [-1, 1].
      text, text_mask: embeddings [volumes, length, dim] and bool [volumes, length] of the prompts,
        or None for a U-Net without text.
      keys: typed random keys [volumes].
      image_size: side of the output in pixels.
      steps, guidance, solver: see `diffusion_solvers` and `make_denoiser`.
      batch: slices per network call; the last batch is filled up and cut.
      objective, noise_schedule, low_res_noise_schedule, low_res_noise_level, percentile,
        self_cond: as in training, see `DiffusionConfig`.
      noise_turn: slices after which the noise is an independent one, equation (1); at least 1.
      sharding: placement of a batch of slices on several devices, None for the default device.
      at_once: batches that run at the same time. On a CPU, whose cores a small network does not
        keep busy, two of one slice are faster than one of two.
      on_batch: called with the number of slices finished.

    Returns:
      [volumes, slices, image_size, image_size, channel] float32 in [-1, 1].
    """
    run = functools.partial(
        super_resolve_batch,
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
    given = {"text": text, "text_mask": text_mask}
    prompts = {name: value for name, value in given.items() if value is not None}
    low_res = np.asarray(low_res, np.float32)
    volumes, depth = low_res.shape[:2]

    def batch_from(first: int) -> np.ndarray:
        rows = np.minimum(np.arange(first, first + batch), volumes * depth - 1)
        volume, index = np.divmod(rows, depth)
        prompt = {name: value[volume] for name, value in prompts.items()}
        inputs = jax.device_put((low_res[volume, index], index, prompt, keys[volume]), sharding)
        return np.asarray(run(unet_apply, *inputs, noise_turn))[: volumes * depth - first]

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
def super_resolve_batch(
    unet_apply: Callable[..., Array],
    low_res: Array,
    index: Array,
    prompt: dict[str, Array],
    keys: Array,
    noise_turn: float,
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
    """One batch of slices, from first to last step; all arrays but the weights have their axis.

    Nothing depends on the number of volumes, so one executable serves all.
    """
    batch, *_, channels = low_res.shape
    noise = functools.partial(
        slice_noise,
        keys,
        index,
        shape=(image_size, image_size, channels),
        turn=noise_turn,
    )
    level = jnp.full(batch, low_res_level)
    condition, condition_log_snr = noised_low_res(
        low_res, noise(LOW_RES_STREAM), level, low_res_schedule
    )
    conditions: dict[str, Any] = {"low_res": condition, "low_res_log_snr": condition_log_snr}
    conditions |= prompt
    return solve(
        noise(START_STREAM),
        denoise=make_denoiser(
            unet_apply,
            conditions,
            guidance=guidance,
            objective=objective,
            percentile=percentile,
            self_cond=self_cond,
        ),
        step_noise=lambda step: noise(FIRST_STEP_STREAM + step),
        log_snrs=noise_schedule(schedule)(time_grid(steps)),
        solver=solver,
    )
