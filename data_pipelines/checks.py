"""What a source hands over, checked where it arrives: a wrong case is named before it is stored."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from data_pipelines.source import HELD_OUT, TRAINING, Source
from gct_jax.errors import ConfigError, GctError
from gct_jax.volumes.grid import Grid, by

if TYPE_CHECKING:
    import jax

T = TypeVar("T")
LOWEST_HU, HIGHEST_HU = -8192, 16384  # air outside the field of some scanners; metal


def checked_volume(source: Source, name: str, case: int, grid: Grid) -> "np.ndarray | jax.Array":
    """`source.volume_hu`, an array of NumPy or JAX, which may still be computing it.

    Raises:
      ConfigError: it cannot be had, or is no int16 HU volume of the grid's shape; the message names
        the source and the case.
    """
    where = f"data.source {name}, case {case}"
    volume = _called(where, lambda: source.volume_hu(case, grid))
    shape, dtype = getattr(volume, "shape", None), getattr(volume, "dtype", None)
    if shape != grid.shape:
        wrong = "no array" if shape is None else f"of shape {by(shape)}"
        raise ConfigError(f"{where}: volume_hu is {wrong}, the grid is {by(grid.shape)}")
    if dtype != np.int16:
        raise ConfigError(f"{where}: volume_hu is {dtype}; give int16 in HU")
    # What is rendered on a device is ours, and looking at it would wait for it.
    if isinstance(volume, np.ndarray):
        low, high = int(volume.min()), int(volume.max())
        if low == high:
            raise ConfigError(f"{where}: volume_hu is {low} everywhere")
        if low < LOWEST_HU or high > HIGHEST_HU or high - low <= 2:
            raise ConfigError(f"{where}: volume_hu goes from {low} to {high}, which are no HU")
    return volume


def checked_report(source: Source, name: str, case: int, rng: np.random.Generator) -> str:
    """`source.report`.

    Raises:
      ConfigError: it cannot be had, or is no text; the message names the source and the case.
    """
    where = f"data.source {name}, case {case}"
    report = _called(where, lambda: source.report(case, rng))
    if not isinstance(report, str) or not report.strip():
        raise ConfigError(f"{where}: the report is {report!r}, not a text")
    return report


def split_cases(source: Source, name: str) -> tuple[list[int], list[int]]:
    """The cases for training and those held out.

    Raises:
      ConfigError: a case of another split, a patient in both, or no case for training.
    """
    cases: dict[str, list[int]] = {TRAINING: [], HELD_OUT: []}
    patients: dict[str, str] = {}
    for case in range(source.cases):
        split, patient = source.split(case), source.patient(case)
        if split not in cases:
            raise ConfigError(
                f"data.source {name}, case {case}: split is {split!r}, neither {TRAINING!r} nor "
                f"{HELD_OUT!r}"
            )
        if patients.setdefault(patient, split) != split:
            raise ConfigError(
                f"data.source {name}, case {case}: patient {patient!r} has cases in both splits"
            )
        cases[split].append(case)
    if not cases[TRAINING]:
        raise ConfigError(f"data.source {name} has no training cases")
    return cases[TRAINING], cases[HELD_OUT]


def _called(where: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except GctError:
        raise
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
