"""The whole cascade: text ids -> T5 -> MaskGIT -> CT-ViT -> super-resolution -> volume.

Every stage is a pure function of the model's variables, its inputs and a random key, compiled once
per configuration. The loops over decoding steps and over batches of slices run on the host, so that
progress can be shown; what they compute does not depend on that.

The random key of a volume is key(seed); stage i draws from fold_in(key, i).
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.config import ModelConfig
from gct_jax.errors import InputError, ModelFolderError
from gct_jax.model_folder import Model
from gct_jax.models.ctvit import CTViT
from gct_jax.parts import build_part, has_part
from gct_jax.sampling.superres import super_resolve_slices
from gct_jax.sampling.token_decoding import (
    DecodingPlan,
    DecodingState,
    decode_range,
    initial_state,
    with_guidance,
)

# Called with a stage ("tokens" or "superres"), the number of finished steps or slices, and of all.
Progress = Callable[[str, int, int], None]

TOKEN_STAGE, SUPERRES_STAGE = 0, 1
PIXELS_PER_BATCH = 8 * 256 * 256  # of super-resolved slices: what a U-Net holds in about 1 GB


class Settings(NamedTuple):
    """What a user chooses for one volume.

    steps, temperature, guidance: of MaskGIT.
    superres_steps, superres_guidance, superres_solver: of the U-Net.
    slices: depth of the volume, a count that `fitting_slices` returns.
    superres: False stops after CT-ViT.
    """

    seed: int
    slices: int
    steps: int
    temperature: float
    guidance: float
    superres_steps: int
    superres_guidance: float
    superres_solver: str
    superres: bool = True


class Generated(NamedTuple):
    """A sampled volume.

    volume: float32 [depth, height, width] in [-1, 1]. spacing_mm: along the same axes.
    token_ids: int32 [time, height, width]. seconds: wall time of each stage, compilation included.
    """

    volume: np.ndarray
    spacing_mm: tuple[float, float, float]
    token_ids: np.ndarray
    seconds: dict[str, float]


def require_generator(config: ModelConfig, superres: bool) -> None:
    """Raise ModelFolderError unless the model has every part that generation needs."""
    for part in ("t5", "maskgit", "ctvit", *(["superres"] if superres else [])):
        if not has_part(config, part):
            hint = "; try --no-superres" if part == "superres" else ""
            raise ModelFolderError(f"model '{config.name}' has no part '{part}'{hint}")


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
    fitting = 1 + math.ceil((asked - 1) / patch) * patch
    frames = maskgit.max_sequence_length // (config.volume.image_size // ctvit.patch_size) ** 2
    most = 1 + (frames - 1) * patch
    if fitting > most:
        raise InputError(
            f"{asked} slices are more than model '{config.name}' holds: at most {most}"
        )
    return fitting


@functools.partial(jax.jit, static_argnames="config")
def embed_text(variables: Any, text_ids: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Text ids [batch, length] -> embeddings [batch, length, dim]."""
    return build_part(config, "t5").apply(variables, text_ids)


@functools.partial(jax.jit, static_argnames=("config", "plan", "with_null"))
def token_steps(
    variables: Any,
    state: DecodingState,
    start: int,
    stop: int,
    keys: jax.Array,
    text: jax.Array,
    text_mask: jax.Array,
    guidance: float,
    *,
    config: ModelConfig,
    plan: DecodingPlan,
    with_null: bool,
) -> DecodingState:
    """MaskGIT's decoding steps start .. stop-1; see `decode_range`. One executable serves all
    bounds and guidance weights; `with_null` False leaves out the null branch (weight 1)."""
    apply = functools.partial(build_part(config, "maskgit").apply, variables)
    logits_fn = with_guidance(apply, text, text_mask, guidance if with_null else 1)
    return decode_range(state, start, stop, keys, plan, logits_fn)


@functools.partial(jax.jit, static_argnames="config")
def decode_volume(variables: Any, token_ids: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Token ids [batch, t, h, w] -> volume [batch, depth, height, width, channels] in [-1, 1]."""
    volume = build_part(config, "ctvit").apply(variables, token_ids, method=CTViT.decode)
    return jnp.clip(volume, -1.0, 1.0)


def generate_volume(
    model: Model, text_ids: np.ndarray, settings: Settings, on_progress: Progress
) -> Generated:
    """Sample one volume. The same arguments on the same device give the same bits.

    Args:
      text_ids: int32 [length] of the prompt, ending in the end token.
      on_progress: called after every decoding step and every batch of slices.

    Raises:
      ModelFolderError: the model lacks a part (see `require_generator`).
    """
    config = model.config
    require_generator(config, settings.superres)
    assert config.t5
    key = jax.random.key(settings.seed)
    seconds: dict[str, float] = {}

    with _timed(seconds, "text"):
        padded = np.zeros((1, config.t5.max_length), np.int32)
        padded[0, : len(text_ids)] = text_ids
        text = embed_text(model.variables("t5"), padded, config=config)
        text_mask = jax.block_until_ready(jnp.asarray(padded > 0))
    with _timed(seconds, "tokens"):
        stage_key = jax.random.fold_in(key, TOKEN_STAGE)
        token_ids = sample_tokens(model, text, text_mask, stage_key, settings, on_progress)
    with _timed(seconds, "decode"):
        volume = decode_volume(model.variables("ctvit"), token_ids, config=config)
        slices = jax.block_until_ready(volume[0])
    pixel_mm = config.volume.pixel_spacing_mm
    if settings.superres:
        with _timed(seconds, "superres"):
            stage_key = jax.random.fold_in(key, SUPERRES_STAGE)
            slices = super_resolve(model, slices, text, text_mask, stage_key, settings, on_progress)
        pixel_mm *= config.volume.image_size / slices.shape[1]
    return Generated(
        volume=np.asarray(slices)[..., 0],
        spacing_mm=(config.volume.slice_spacing_mm, pixel_mm, pixel_mm),
        token_ids=np.asarray(token_ids[0]),
        seconds=seconds,
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def sample_tokens(
    model: Model,
    text: jax.Array,
    text_mask: jax.Array,
    key: jax.Array,
    settings: Settings,
    on_progress: Progress,
) -> jax.Array:
    """MaskGIT's parallel decoding of one volume.

    Args:
      text: [1, length, dim]. text_mask: bool [1, length].
      key: typed random key of the stage.

    Returns:
      int32 [1, time, height, width].
    """
    config = model.config
    assert config.ctvit and config.maskgit
    side = config.volume.image_size // config.ctvit.patch_size
    plan = DecodingPlan(
        grid=(1 + (settings.slices - 1) // config.ctvit.temporal_patch_size, side, side),
        mask_id=config.maskgit.num_tokens,
        steps=settings.steps,
        temperature=settings.temperature,
    )
    state = initial_state(1, plan)
    on_progress("tokens", 0, plan.steps)
    for step in range(plan.steps):
        state = token_steps(
            model.variables("maskgit"),
            state,
            step,
            step + 1,
            key[None],
            text,
            text_mask,
            settings.guidance,
            config=config,
            plan=plan,
            with_null=settings.guidance != 1,
        )
        jax.block_until_ready(state)
        on_progress("tokens", step + 1, plan.steps)
    return state.ids


def super_resolve(
    model: Model,
    slices: jax.Array,
    text: jax.Array,
    text_mask: jax.Array,
    key: jax.Array,
    settings: Settings,
    on_progress: Progress,
) -> np.ndarray:
    """Enlarge every slice.

    Args:
      slices: [depth, height, width, channels] in [-1, 1].
      text: [1, length, dim]. text_mask: bool [1, length].
      key: typed random key of the stage.

    Returns:
      float32 [depth, size, size, channels] in [-1, 1].
    """
    unet, diffusion = model.config.unet, model.config.diffusion
    assert unet and diffusion
    depth = len(slices)
    on_progress("superres", 0, depth)
    return super_resolve_slices(
        jax.tree_util.Partial(_unet_function(model.config), model.variables("superres")),
        slices,
        text if unet.text_embed_dim else None,
        text_mask if unet.text_embed_dim else None,
        key,
        image_size=diffusion.image_size,
        steps=settings.superres_steps,
        guidance=settings.superres_guidance,
        solver=settings.superres_solver,
        batch=batch_size(depth, diffusion.image_size),
        objective=diffusion.objective,
        noise_schedule=diffusion.noise_schedule,
        low_res_noise_schedule=diffusion.low_res_noise_schedule,
        low_res_noise_level=diffusion.low_res_noise_level,
        percentile=(
            diffusion.dynamic_thresholding_percentile if diffusion.dynamic_thresholding else None
        ),
        self_cond=unet.self_cond,
        on_batch=lambda done: on_progress("superres", done, depth),
    )


@functools.lru_cache(maxsize=4)
def _unet_function(config: ModelConfig) -> Callable[..., jax.Array]:
    """The U-Net's `apply`, the same object for the same config, so that jit knows it again."""
    return build_part(config, "superres").apply


def batch_size(depth: int, image_size: int) -> int:
    """Slices per U-Net call: as even as possible, and at most `PIXELS_PER_BATCH`."""
    most = max(1, PIXELS_PER_BATCH // image_size**2)
    return math.ceil(depth / math.ceil(depth / most))
