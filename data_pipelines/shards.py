"""A folder of prepared cases, so that training does not share its processor with the renderer.

    volumes_00003.npy          int16 HU [256, d, h, w]      cases 768 ... 1023
    counterfactual-volumes_00003.npy                        the same patients, other findings
    tokens-<tag>_00003.npy     unsigned [256, t, h, w]      the same cases, encoded by CT-ViT <tag>
    counterfactual-tokens-<tag>_00003.npy                   and their counterfactuals
    low-<tag>_00003.npy        int16 HU [256, k, h, w]      k slices as CT-ViT <tag> rebuilds them
    high-<tag>_00003.npy       int16 HU [256, k, H, W]      the same slices at full resolution

Case number i is that of the source, its counterfactual that of `counterfactual()`. A shard is
written under a temporary name and renamed, and one that exists is not made again, so preparation
resumes where it stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done

SHARD = 256


class Shards:
    """Read access to case i of the arrays `name` in `folder`; nothing is held in memory."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._open: dict[int, np.ndarray] = {}

    def __call__(self, case: int) -> np.ndarray:
        """The array of one case."""
        number, row = divmod(case, SHARD)
        if number not in self._open:
            self._open[number] = np.load(shard_path(self._folder, self._name, number), "r")
        return self._open[number][row]


def shard_path(folder: Path, name: str, number: int) -> Path:
    """File of shard `number` of the arrays `name`."""
    return folder / f"{name}_{number:05d}.npy"


def prepare(
    folder: Path,
    names: tuple[str, ...],
    cases: int,
    make: Callable[[int], tuple[Any, ...]],
) -> None:
    """Write the shards that are missing or too short; make(case) returns one array per name, which
    JAX may still be computing while the next case is sampled.

    Raises:
      ConfigError: the folder holds something else under these names, made by another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [min(SHARD, cases - first) for first in range(0, cases, SHARD)]
    missing = [
        number
        for number, size in enumerate(sizes)
        if any(_rows(shard_path(folder, name, number)) < size for name in names)
    ]
    if 0 not in missing:
        _require_same(folder, names, make(0))
    work = [(number, row) for number in missing for row in range(sizes[number])]
    rows: list[tuple[Any, ...]] = []
    for number, _ in tqdm(
        work, desc=f"preparing {', '.join(names)}", unit="case", disable=not work
    ):
        rows.append(make(number * SHARD + len(rows)))
        if len(rows) == sizes[number]:
            for name, arrays in zip(names, zip(*rows, strict=True), strict=True):
                path = shard_path(folder, name, number)
                with replace_when_done(path) as temporary, temporary.open("wb") as file:
                    np.save(file, np.stack([np.asarray(array) for array in arrays]))
            rows = []


def _rows(path: Path) -> int:
    """Cases in a shard; 0, so that it is made again, if it is missing or damaged."""
    try:
        return len(np.load(path, "r"))
    except (OSError, ValueError, EOFError):
        return 0


def _require_same(folder: Path, names: tuple[str, ...], arrays: tuple[Any, ...]) -> None:
    """Case 0 made anew must be the one on disk; a few values may round differently."""
    for name, array in zip(names, arrays, strict=True):
        stored = np.load(shard_path(folder, name, 0), "r")[0]
        made = np.asarray(array)
        if stored.shape != made.shape or np.mean(np.abs(made - stored.astype(int)) > 1) > 0.05:
            raise ConfigError(
                f"{shard_path(folder, name, 0)} does not hold what this version would make; "
                "delete it or choose another data.folder"
            )
