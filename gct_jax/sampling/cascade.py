"""The whole cascade: text ids -> T5 -> MaskGIT -> CT-ViT -> super-resolution -> volumes.

Every stage is a pure function of the model's variables, its inputs and random keys, compiled once
per configuration. The loops over decoding steps and over batches of slices can run on the host, so
that progress can be shown; what they compute does not depend on that.

The random key of a volume is key(seed); stage i draws from fold_in(key, i).
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gct_jax.array_types import Text, TextIds
from gct_jax.components import build_component, has_component, present_components
from gct_jax.config import ModelConfig
from gct_jax.errors import InputError, ModelFolderError
from gct_jax.kernels.portions import batches, pixels_per_batch
from gct_jax.model_folder import Model
from gct_jax.models.token_grid import covering_slice_count, slice_count, token_grid
from gct_jax.random_keys import random_key
from gct_jax.runtime.host import give_back_freed_memory
from gct_jax.runtime.numerics import fixed_numerics
from gct_jax.sampling.programs import (
    Program,
    Prompts,
    decode_volumes,
    prepare_prompts,
    sample_volumes,
    token_steps,
)
from gct_jax.sampling.settings import Settings, superres_settings
from gct_jax.sampling.superres import super_resolve_slices
from gct_jax.sampling.token_decoding import DecodingPlan, initial_state
from gct_jax.text import pad_ids

# Called with a stage ("tokens" or "superres"), the number of finished steps or slices, and of all.
Progress = Callable[[str, int, int], None]

TOKEN_STAGE, SUPERRES_STAGE = 0, 1


class Generated(NamedTuple):
    """A sampled volume.

    volume: float32 [depth, height, width] in [-1, 1]. spacing_mm: along the same axes.
    token_ids: int32 [time, height, width]. seconds: wall time of each stage, compilation included,
    for all volumes sampled with it.
    """

    volume: np.ndarray
    spacing_mm: tuple[float, float, float]
    token_ids: np.ndarray
    seconds: dict[str, float]


def require_generator(config: ModelConfig, superres: bool) -> None:
    """Raise ModelFolderError unless the model has every component that generation needs."""
    for component in ("t5", "maskgit", "ctvit", *(["superres"] if superres else [])):
        if not has_component(config, component):
            without = "; it can generate without (superres=False, --no-superres)"
            hint = without if component == "superres" else ""
            raise ModelFolderError(f"model '{config.name}' has no component '{component}'{hint}")


def fitting_slices(config: ModelConfig, asked: int) -> int:
    """The smallest slice count >= `asked` that CT-ViT's patches tile: 1 + k * temporal patch.

    Raises:
      InputError: fewer than 1 slice, or more than the positions of MaskGIT allow.
    """
    ctvit, maskgit = config.ctvit, config.maskgit
    assert ctvit and maskgit  # see require_generator
    if asked < 1:
        raise InputError(f"{asked} slices cannot be generated; ask for at least 1")
    patch = ctvit.temporal_patch_size
    fitting = covering_slice_count(asked, patch)
    _, height, width = model_token_grid(config, 1)
    frames = maskgit.max_sequence_length // (height * width)
    most = slice_count(frames, patch)
    if fitting > most:
        raise InputError(
            f"{asked} slices are more than model '{config.name}' holds: at most {most}"
        )
    return fitting


@functools.partial(jax.jit, static_argnames="config")
def embed_text(variables: PyTree, text_ids: TextIds, *, config: ModelConfig) -> Text:
    """Text ids [batch, length] -> embeddings [batch, length, dim]."""
    return build_component(config, "t5").apply(variables, text_ids)


def generate_volumes(
    model: Model,
    text_ids: Sequence[np.ndarray],
    seeds: Sequence[int],
    settings: Settings,
    on_progress: Progress = lambda *_: None,
    *,
    room: int = 0,
    stepwise: bool = True,
) -> list[Generated]:
    """Sample a volume for each prompt and seed.

    The same prompt, seed and settings on the same kind of device give the same token ids, and the
    same volume, whatever else is sampled with it.

    Args:
      text_ids: int32 [length] of each prompt, ending in the end token.
      seeds: one for each prompt.
      on_progress: called after every decoding step and every batch of slices.
      room: batch size to compile for, at least the number of prompts; batches of up to this many
        then share one program.
      stepwise: False runs everything up to the low-resolution volume as one program, without
        progress in between.

    Raises:
      ModelFolderError: the model lacks a component (see `require_generator`).
    """
    with fixed_numerics():
        return _generate(model, text_ids, seeds, settings, on_progress, room, stepwise)


def _generate(
    model: Model,
    text_ids: Sequence[np.ndarray],
    seeds: Sequence[int],
    settings: Settings,
    on_progress: Progress,
    room: int,
    stepwise: bool,
) -> list[Generated]:
    config = model.config
    require_generator(config, settings.superres)
    key_list = [random_key(seed) for seed in seeds]
    seconds: dict[str, float] = {}
    low = sample_low_resolution(
        model, text_ids, key_list, settings, on_progress, seconds, room=room, stepwise=stepwise
    )
    volumes, pixel_mm = low.volumes, config.volume.pixel_spacing_mm
    if settings.superres:
        give_back_freed_memory()  # what compiling left: the U-Net needs the most
        with _timed(seconds, "superres"):
            volumes = super_resolve(
                model, volumes, low.text, low.text_mask, key_list, settings, on_progress
            )
        pixel_mm *= config.volume.image_size / volumes.shape[2]
    return [
        Generated(
            volume=volume[..., 0],
            spacing_mm=(config.volume.slice_spacing_mm, pixel_mm, pixel_mm),
            token_ids=token_ids,
            seconds=seconds,
        )
        for volume, token_ids in zip(volumes, low.token_ids, strict=True)
    ]


class LowResolution(NamedTuple):
    """What comes before the super-resolution: volumes float32 [n, depth, height, width, channels],
    token ids int32 [n, time, height, width], text [n, length, dim], text_mask [n, length]."""

    volumes: np.ndarray
    token_ids: np.ndarray
    text: jax.Array
    text_mask: jax.Array


def sample_low_resolution(
    model: Model,
    text_ids: Sequence[np.ndarray],
    keys: Sequence[jax.Array],
    settings: Settings,
    on_progress: Progress,
    seconds: dict[str, float],
    *,
    room: int = 0,
    stepwise: bool = True,
) -> LowResolution:
    """T5, MaskGIT and CT-ViT; arguments as `generate_volumes`, with a typed key per volume.

    Enters the wall time of its stages into `seconds`.
    """
    config = model.config
    assert config.t5
    count = len(text_ids)
    rows = np.minimum(np.arange(max(room, count)), count - 1)
    padded = pad_ids(text_ids, config.t5.max_length)
    stage_keys = jnp.stack([jax.random.fold_in(keys[i], TOKEN_STAGE) for i in rows])
    networks = [name for name in present_components(config) if name != "superres"]
    variables = {name: model.variables(name) for name in networks}
    program = sampling_program(config, settings)
    steps = program.plan.steps
    on_progress("tokens", 0, steps)
    if stepwise:
        prompts, token_ids, volumes = _step_by_step(
            variables,
            padded[rows],
            stage_keys,
            count,
            settings.guidance,
            program,
            lambda done: on_progress("tokens", done, steps),
            seconds,
        )
    else:
        with _timed(seconds, "text to volume"):
            prompts, token_ids, volumes = jax.block_until_ready(
                sample_volumes(
                    variables, padded[rows], stage_keys, count, settings.guidance, program=program
                )
            )
        on_progress("tokens", steps, steps)
    return LowResolution(
        volumes=np.asarray(volumes)[:count],
        token_ids=np.asarray(token_ids)[:count],
        text=prompts.embeddings[:count],
        text_mask=prompts.mask[:count],
    )


def _step_by_step(
    variables: dict[str, PyTree],
    text_ids: np.ndarray,
    keys: jax.Array,
    count: int,
    guidance: float,
    program: Program,
    on_step: Callable[[int], None],
    seconds: dict[str, float],
) -> tuple[Prompts, jax.Array, jax.Array]:
    """What `sample_volumes` computes, by a loop on the host over MaskGIT's steps."""
    with _timed(seconds, "text"):
        prompts = jax.block_until_ready(
            prepare_prompts(variables, text_ids, count, program=program)
        )
    with _timed(seconds, "tokens"):
        state = initial_state(len(text_ids), program.plan)
        for step in range(program.plan.steps):
            bounds = (step, step + 1, count)
            state = token_steps(variables, state, *bounds, keys, prompts, guidance, program=program)
            jax.block_until_ready(state)
            on_step(step + 1)
    with _timed(seconds, "decode"):
        volumes = decode_volumes(variables, state.ids, count, program=program)
        return prompts, state.ids, jax.block_until_ready(volumes)


def model_token_grid(config: ModelConfig, slices: int) -> tuple[int, int, int]:
    """(time, height, width) of the tokens of so many slices."""
    assert config.ctvit
    size, patches = config.volume.image_size, config.ctvit
    return token_grid(
        slices,
        size,
        size,
        patch_size=patches.patch_size,
        temporal_patch_size=patches.temporal_patch_size,
    )


def sampling_program(config: ModelConfig, settings: Settings) -> Program:
    """What to compile for these settings."""
    assert config.ctvit and config.maskgit
    plan = DecodingPlan(
        grid=model_token_grid(config, settings.slices),
        mask_id=config.maskgit.num_tokens,
        steps=settings.steps,
        temperature=settings.temperature,
        critic_noise=settings.critic_noise,
        critic_noise_schedule=settings.critic_noise_schedule,
    )
    return Program(config, plan, settings.dtype, with_null=settings.guidance != 1)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def super_resolve(
    model: Model,
    volumes: np.ndarray,
    text: jax.Array,
    text_mask: jax.Array,
    keys: Sequence[jax.Array],
    settings: Settings,
    on_progress: Progress = lambda *_: None,
) -> np.ndarray:
    """Enlarge every slice.

    Args:
      volumes: [n, depth, height, width, channels] in [-1, 1].
      text: [n, length, dim]. text_mask: bool [n, length].
      keys: typed random key of each volume.

    Returns:
      float32 [n, depth, size, size, channels] in [-1, 1].
    """
    unet, diffusion = model.config.superres, model.config.diffusion
    assert unet and diffusion
    depth = volumes.shape[1]
    slices = len(volumes) * depth
    batch, at_once = batches(depth, pixels_per_batch(unet.dim) // diffusion.image_size**2)
    on_progress("superres", 0, slices)
    return super_resolve_slices(
        jax.tree_util.Partial(
            _unet_function(model.config, settings.dtype), model.variables("superres")
        ),
        volumes,
        text if unet.text_embed_dim else None,
        text_mask if unet.text_embed_dim else None,
        jnp.stack([jax.random.fold_in(key, SUPERRES_STAGE) for key in keys]),
        superres_settings(model.config, settings),
        batch=batch,
        at_once=at_once,
        on_batch=lambda done: on_progress("superres", done, slices),
    )


@functools.lru_cache(maxsize=4)
def _unet_function(config: ModelConfig, dtype: str) -> Callable[..., jax.Array]:
    """The U-Net's `apply`, the same object for the same config, so that jit knows it again."""
    return build_component(config, "superres", jnp.dtype(dtype)).apply
