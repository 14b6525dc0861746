"""A CT through one network of the cascade: to token ids and back, or to fine slices."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.components import build_component, require_component
from gct_jax.config import CodecConfig, ModelConfig
from gct_jax.errors import InputError
from gct_jax.generation import computation_dtype, prompt_notes, read_prompt, require_type
from gct_jax.model_folder import Model
from gct_jax.models.token_grid import covering_slice_count, patch_sides, slice_count, token_grid
from gct_jax.notes import Note, warn
from gct_jax.random_keys import random_key, require_seed
from gct_jax.runtime.numerics import fixed_numerics
from gct_jax.sampling import cascade
from gct_jax.sampling.cascade import Progress
from gct_jax.sampling.settings import choose_settings
from gct_jax.text import pad_ids
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import Grid, Spacing, by
from gct_jax.volumes.intensity import from_unit, to_unit
from gct_jax.volumes.placement import on_grid, place
from gct_jax.volumes.resample import resample

MOST_SLICES = 4096  # of a CT that is encoded
FIELDS = ("body", "whole")
LEAST_COVERED = 0.6  # of the depth that the model sees, without a note


def covering_grid(config: ModelConfig, grid: Grid) -> Grid:
    """The model's grid, made large enough for a CT that lies on `grid`; same centre and axes.

    Slices keep the model's spacing; there are as many as the CT is long, rounded up to a count
    that CT-ViT's patches tile. Pixels keep the model's spacing too, with air around a small CT,
    unless the CT is wider than the model's field; then they grow until it fits.

    Raises:
      InputError: the CT is longer than `MOST_SLICES` slices.
      ModelFolderError: the model has no CT-ViT.
    """
    own, patch = config.volume, _require_ctvit(config).temporal_patch_size
    depth_mm, height_mm, width_mm = np.multiply(grid.shape, grid.spacing_mm).tolist()
    # 1e-6: a field of exactly the model's length shall not gain slices by rounding
    slices = covering_slice_count(math.ceil(depth_mm / own.slice_spacing_mm - 1e-6), patch)
    if slices > MOST_SLICES:
        raise InputError(
            f"the CT is {depth_mm:,.0f} mm long, which asks for {slices:,} slices of "
            f"{own.slice_spacing_mm:g} mm, more than {MOST_SLICES:,}; cut it, or state --spacing"
        )
    pixel_mm = max(own.pixel_spacing_mm, max(height_mm, width_mm) / own.image_size)
    spacing_mm = (own.slice_spacing_mm, pixel_mm, pixel_mm)
    return grid.regrid((slices, own.image_size, own.image_size), spacing_mm)


def encoding_grid(config: ModelConfig, ct: CT, field: str = "body", on_note: Note = warn) -> Grid:
    """Where CT-ViT reads a CT; axes are those of the CT.

    Args:
      field: "body": as the volumes that CT-ViT learns from are prepared (`volumes.placement`), the
        model's pixels about the middle of the body, and what lies outside is cut; with as many
        slices as the CT is long. A CT that has the model's grid already is taken as it stands,
        and one that shows no chest, whole. "whole": `covering_grid`, nothing is cut.
      on_note: called with sentences on what was cut, or padded with much air.

    Raises:
      InputError: the CT is too long, or `field` is neither.
      ModelFolderError: the model has no CT-ViT.
    """
    require_type("ct", ct, CT)
    if field not in FIELDS:
        raise InputError(f"field = {field!r} is not {' or '.join(FIELDS)}")
    grid, own = covering_grid(config, ct.grid), config.volume
    covered = ct.grid.shape[0] * ct.spacing_mm[0] / (grid.shape[0] * grid.spacing_mm[0])
    if covered < LEAST_COVERED:
        on_note(
            f"the CT fills {100 * covered:.0f} % of the depth of {grid.shape[0]} slices that the "
            "model needs; the rest is air, and what is decoded may be far off"
        )
    same = grid.shape == ct.grid.shape and np.allclose(grid.spacing_mm, ct.spacing_mm, rtol=1e-4)
    if field == "whole" or same:
        return grid
    spacing_mm = (own.slice_spacing_mm, own.pixel_spacing_mm, own.pixel_spacing_mm)
    try:
        placement = place(ct, grid.shape, spacing_mm)
    except InputError as error:  # no chest
        on_note(
            f"{str(error).removeprefix('the CT: ')}; so all of it is read, and not the body's field"
        )
        return grid
    for note in placement.notes:
        on_note(note)
    return placement.grid


def encode(model: Model, ct: CT, grid: Grid | None = None, *, on_note: Note = warn) -> np.ndarray:
    """Token ids of a CT.

    Args:
      grid: where CT-ViT reads it, of shape and spacing that its patches tile; None:
        `encoding_grid(model.config, ct)`.
      on_note: as for `encoding_grid`.

    Returns:
      int32 [time, height, width].

    Raises:
      InputError: the CT is too long, or the grid's axes are not the CT's.
      ModelFolderError: the model has no CT-ViT.
    """
    require_type("model", model, Model)
    require_type("ct", ct, CT)
    ctvit = _require_ctvit(model.config)
    grid = grid or encoding_grid(model.config, ct, on_note=on_note)
    with fixed_numerics():
        volume = to_unit(on_grid(ct, grid))
        variables = model.variables("ctvit")
        ids = _ctvit_function(ctvit, "encode")(variables, volume[None, ..., None])
        return np.asarray(ids[0], np.int32)


def decode(model: Model, ids: np.ndarray, grid: Grid | None = None) -> CT:
    """The CT that token ids stand for.

    Args:
      ids: whole numbers [time, height, width] from 0 to the codebook's size - 1.
      grid: where the result lies, as `encoding_grid` says of the CT that was encoded. None: the
        model's spacing about the world's origin.

    Raises:
      InputError: ids of another shape or outside the codebook.
      ModelFolderError: the model has no CT-ViT.
    """
    require_type("model", model, Model)
    ctvit, ids = _require_ctvit(model.config), np.asarray(ids)
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"ids are {ids.dtype} {ids.shape}, not whole numbers [t, h, w]")
    grid = grid or _grid_of_ids(model.config, ids.shape)
    patch, temporal_patch = ctvit.patch_size, ctvit.temporal_patch_size
    expected = token_grid(*grid.shape, patch_size=patch, temporal_patch_size=temporal_patch)
    if ids.shape != expected:
        raise InputError(
            f"{by(ids.shape)} ids for a grid of {by(grid.shape)}, which has {by(expected)}"
        )
    if ids.min() < 0 or ids.max() >= ctvit.codebook_size:
        raise InputError(
            f"ids from {ids.min()} to {ids.max()}, the codebook has 0 to {ctvit.codebook_size - 1}"
        )
    ids = ids.astype(np.int32)
    with fixed_numerics():
        volume = _ctvit_function(ctvit, "decode")(model.variables("ctvit"), ids[None])
        volume_hu = np.asarray(from_unit(volume[0, ..., 0]))
    return CT(volume_hu, grid.affine, ids)


def super_resolve(
    model: Model,
    ct: CT,
    prompt: str,
    seed: int = 0,
    *,
    superres_steps: int | None = None,
    dtype: str = "auto",
    on_progress: Progress | None = None,
    on_note: Note = warn,
) -> CT:
    """Enlarge every slice of a CT, with the text as the condition.

    Args:
      ct: resampled to the model's low-resolution grid first, see `covering_grid`.
      prompt, seed, superres_steps, dtype, on_progress, on_note: as for `generate`.

    Raises:
      InputError: a prompt or CT that cannot be used. ConfigError: an option outside its range.
      ModelFolderError: the model lacks the U-Net or the text encoder.
    """
    require_type("model", model, Model)
    require_type("ct", ct, CT)
    config = model.config
    require_seed(seed)
    require_component(config, "superres")
    text, grid = read_prompt(model, prompt), covering_grid(config, ct.grid)
    settings = choose_settings(
        config,
        slices=grid.shape[0],
        superres_steps=superres_steps,
        dtype=computation_dtype(dtype),
    )
    for note in prompt_notes([text]):
        on_note(note)
    assert config.t5  # read_prompt has looked
    ids = pad_ids([text.ids], config.t5.max_length)
    with fixed_numerics():
        low = to_unit(resample(ct.volume_hu, ct.spacing_mm, grid.shape, grid.spacing_mm))
        high = cascade.super_resolve(
            model,
            np.asarray(low)[None, ..., None],
            cascade.embed_text(model.variables("t5"), ids, config=config),
            jnp.asarray(ids > 0),
            [random_key(seed)],
            settings,
            on_progress or (lambda *_: None),
        )[0, ..., 0]
    depth, height, width = high.shape
    pixel_mm = grid.spacing_mm[1] * grid.shape[1] / height
    fine = grid.regrid((depth, height, width), (grid.spacing_mm[0], pixel_mm, pixel_mm))
    metadata = {"prompt": prompt, "seed": seed, "superres_steps": settings.superres_steps}
    return CT(from_unit(high), fine.affine, metadata=metadata)


def _require_ctvit(config: ModelConfig) -> CodecConfig:
    require_component(config, "ctvit")
    assert config.ctvit
    return config.ctvit


def _grid_of_ids(config: ModelConfig, shape: tuple[int, ...]) -> Grid:
    ctvit, own = _require_ctvit(config), config.volume
    height, width = np.multiply(shape[1:], patch_sides(ctvit.patch_size)).tolist()
    slices = slice_count(shape[0], ctvit.temporal_patch_size)
    spacing_mm: Spacing = (own.slice_spacing_mm, own.pixel_spacing_mm, own.pixel_spacing_mm)
    return Grid.centred((slices, height, width), spacing_mm)


@functools.lru_cache(maxsize=8)
def _ctvit_function(ctvit: CodecConfig, method: str) -> Callable[..., jax.Array]:
    """CT-ViT's method, compiled; the same object for the same config, so jit knows it again."""
    module = build_component(ModelConfig(ctvit=ctvit), "ctvit")
    return jax.jit(lambda variables, x: module.apply(variables, x, method=method))
