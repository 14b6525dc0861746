"""The grids of a model, and the one that `--grid` asks for."""

import re
from collections.abc import Sequence

import numpy as np

from gct_jax.config import ModelConfig
from gct_jax.errors import ConfigError
from gct_jax.volumes.grid import Grid, Shape, Spacing, by

NAMED = ("tiny", "demo", "base")


def parse_grid(text: str) -> tuple[Grid, str]:
    """The grid and a sentence on it.

    text: a configuration's name ("base"), "DxHxW", which has the spacing of the configuration of
      that size, or "DxHxW@MMxMMxMM".

    Raises:
      ConfigError: none of them; or a size that no configuration has, without a spacing.
    """
    known = {name: _of(name) for name in NAMED}
    if text in known:
        return _centred(*known[text], f"the grid of configs/{text}.py")
    size, at, stated = text.partition("@")
    shape = _three(size, int)
    spacing = _three(stated, float) if at else None
    if shape is None or (at and spacing is None):
        raise ConfigError(
            f"--grid {text} is none of {', '.join(NAMED)} and not of the form 33x64x64 or "
            "33x64x64@9x5.625x5.625"
        )
    if spacing is not None:
        return _centred(shape, spacing, "as stated")
    for name, (own, own_spacing) in known.items():
        if own == shape:
            return _centred(shape, own_spacing, f"the spacing of configs/{name}.py")
    sizes = ", ".join(f"{by(own)} ({name})" for name, (own, _) in known.items())
    raise ConfigError(f"--grid {text}: state the spacing too, as {text}@MMxMMxMM; known: {sizes}")


def low_grid(model: ModelConfig) -> Grid:
    """The grid of the volumes that the codec reads."""
    volume, size = model.volume, model.volume.image_size
    pixel_mm = volume.pixel_spacing_mm
    return Grid.centred((volume.slices, size, size), (volume.slice_spacing_mm, pixel_mm, pixel_mm))


def high_grid(model: ModelConfig) -> Grid:
    """The same field at the resolution that the U-Net makes."""
    size = model.diffusion.image_size if model.diffusion else model.volume.image_size
    return finer_grid(low_grid(model), size)


def finer_grid(low: Grid, size: int) -> Grid:
    """The same field with slices of `size` x `size` pixels."""
    (depth, height, width), (slice_mm, row_mm, column_mm) = low.shape, low.spacing_mm
    spacing_mm = (slice_mm, row_mm * height / size, column_mm * width / size)
    return low.regrid((depth, size, size), spacing_mm)


def require_grid(
    model: ModelConfig, shape: Sequence[int], spacing_mm: Sequence[float], of: str
) -> None:
    """Raise ConfigError unless volumes that were prepared so are what the codec reads.

    of: the folder, for the message.
    """
    grid = low_grid(model)
    if tuple(shape) != grid.shape or not np.allclose(spacing_mm, grid.spacing_mm, rtol=1e-3):
        raise ConfigError(
            f"{of} was prepared on {by(tuple(shape))} of {by(tuple(spacing_mm), 4)} mm, the model "
            f"reads {by(grid.shape)} of {by(grid.spacing_mm, 4)} mm"
        )


def _centred(shape: Shape, spacing_mm: Spacing, why: str) -> tuple[Grid, str]:
    sentence = f"{by(shape)} voxels of {by(spacing_mm, 4)} mm ({why})"
    return Grid.centred(shape, spacing_mm), sentence


def _of(name: str) -> tuple[Shape, Spacing]:
    import importlib

    volume = importlib.import_module(f"configs.{name}").ctvit().model.volume
    size, pixel_mm = volume.image_size, volume.pixel_spacing_mm
    return (volume.slices, size, size), (volume.slice_spacing_mm, pixel_mm, pixel_mm)


def _three(text: str, kind: type) -> tuple | None:
    parts = re.split("x", text.strip().lower())
    try:
        values = tuple(kind(part) for part in parts)
    except ValueError:
        return None
    return values if len(values) == 3 and all(0 < value < 1e5 for value in values) else None
