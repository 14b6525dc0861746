"""Options of every command that reads a CT, and the reading itself."""

import argparse
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from gct_jax.notes import tell

if TYPE_CHECKING:
    from gct_jax.volumes.ct import CT
    from gct_jax.volumes.grid import Spacing


def add_ct_options(parser: argparse.ArgumentParser) -> None:
    """How to read a file that contradicts itself or says too little."""
    group = parser.add_argument_group("reading a doubtful CT")
    group.add_argument(
        "--form",
        choices=("sform", "qform"),
        help="which placement to trust where the file's two disagree",
    )
    group.add_argument(
        "--spacing",
        type=spacing,
        metavar="DxHxW",
        help="voxel spacing in mm along depth, height and width, instead of the file's",
    )
    group.add_argument(
        "--trust-spacing",
        action="store_true",
        help="accept a field of view that no chest CT has",
    )
    group.add_argument(
        "--require-orientation",
        action="store_true",
        help="refuse a file that states no orientation instead of taking it for LAS",
    )


def spacing(text: str) -> "Spacing":
    """Three lengths in mm, separated by "x" or ","."""
    parts = text.lower().replace(",", "x").split("x")
    with contextlib.suppress(ValueError):
        depth, height, width = (float(part) for part in parts)
        if all(0 < length < math.inf for length in (depth, height, width)):
            return depth, height, width
    raise argparse.ArgumentTypeError(
        f"'{text}' is not three lengths in mm above 0, such as 2.5x0.7x0.7"
    )


def read_ct(path: Path, arguments: argparse.Namespace) -> "CT":
    """The CT, its notes told on stderr.

    Raises:
      InputError: see `CT.from_file`.
    """
    from gct_jax.volumes.ct import CT

    ct = CT.from_file(
        path,
        form=arguments.form,
        spacing_mm=arguments.spacing,
        trust_spacing=arguments.trust_spacing,
        require_orientation=arguments.require_orientation,
    )
    for note in ct.notes:
        tell(f"{path}: {note}")
    return ct
