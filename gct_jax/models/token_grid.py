"""The grid of tokens of a volume, for every codec.

Slice 0 is a token frame of its own, each further `temporal_patch_size` slices make one more, so
that d = 1 + (t - 1) temporal_patch_size slices give t token frames.
"""

import math

from gct_jax.errors import InputError

PatchSize = int | tuple[int, int]


def patch_sides(patch_size: PatchSize) -> tuple[int, int]:
    """Height and width of a patch in pixels; one number stands for a square."""
    return (patch_size, patch_size) if isinstance(patch_size, int) else patch_size


def token_grid(
    depth: int, height: int, width: int, *, patch_size: PatchSize, temporal_patch_size: int
) -> tuple[int, int, int]:
    """Token grid (t, h, w) of a volume.

    Raises:
      InputError: a size that the patches do not divide.
    """
    if depth < 1 or (depth - 1) % temporal_patch_size:
        raise InputError(
            f"{depth} slices: a temporal patch of {temporal_patch_size} needs a count of "
            f"1 + a multiple of {temporal_patch_size}; "
            f"the nearest is {nearest_slice_count(depth, temporal_patch_size)}"
        )
    rows, columns = patch_sides(patch_size)
    if height < 1 or width < 1 or height % rows or width % columns:
        raise InputError(f"slices of {height} x {width} are not a multiple of patch {patch_size}")
    return 1 + (depth - 1) // temporal_patch_size, height // rows, width // columns


def slice_count(frames: int, temporal_patch_size: int) -> int:
    """Slices that `frames` token frames decode to."""
    return 1 + (frames - 1) * temporal_patch_size


def covering_slice_count(slices: int, temporal_patch_size: int) -> int:
    """The smallest allowed number of slices that is at least `slices`."""
    return slice_count(1 + math.ceil((slices - 1) / temporal_patch_size), temporal_patch_size)


def nearest_slice_count(slices: int, temporal_patch_size: int) -> int:
    """The allowed number of slices nearest to `slices`, the larger one of two."""
    frames = 1 + (2 * (slices - 1) + temporal_patch_size) // (2 * temporal_patch_size)
    return slice_count(max(1, frames), temporal_patch_size)
