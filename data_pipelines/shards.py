"""Arrays of cases, prepared once in a folder or made in memory.

    volumes-33x64_00003.npy          int16 HU [256, d, h, w]    cases 768 ... 1023
    counterfactual-volumes-33x64_00003.npy                      the same patients, other findings
    tokens-<tag>_00003.npy           unsigned [256, t, h, w]    the same cases as tokens
    counterfactual-tokens-<tag>_00003.npy                       and their counterfactuals
    low-<tag>_00003.npy              int16 HU [256, k, h, w]    k slices, coded and rebuilt
    high-<tag>_00003.npy             int16 HU [256, k, H, W]    the same slices at full resolution
    volumes-33x64.json, ...          what they were made from

Case number i is that of the source, <tag> the hash of a codec's weights. A shard is written under a
temporary name and renamed, and one that exists is not made again, so preparation resumes where it
stopped.

What needs arrays of cases asks a `Keep` for them, which makes, reads or remembers them.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done

SHARD = 256  # cases
MEMORY_BYTES = 2 << 30  # of cases that `InMemory` keeps

Arrays = Callable[[int], np.ndarray]  # case number -> array
Make = Callable[[int], Sequence[Any]]  # case number -> an array per name
About = Mapping[str, Any]


class Keep(Protocol):
    """How the arrays of cases are come by."""

    def __call__(self, names: tuple[str, ...], make: Make, about: About) -> list[Arrays]:
        """Arrays by case number, one for each name.

        Args:
          names: file names without number.
          make: gives all arrays of one case; JAX may still be computing them.
          about: what they were made from, as plain values by name.
        """


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


class Writing:
    """A `Keep` that writes the shards that are missing or too short, then reads.

    Raises:
      ConfigError: the folder holds something else under these names, made by another version.
    """

    def __init__(self, folder: Path, cases: int):
        self._folder, self._cases = folder, cases

    def __call__(self, names: tuple[str, ...], make: Make, about: About) -> list[Arrays]:
        """See `Keep`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = _missing(self._folder, names, self._cases)
        if 0 not in missing:
            _require_same(self._folder, names, make(0), about)
        else:
            with replace_when_done(about_path(self._folder, names)) as temporary:
                temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        sizes = _sizes(self._cases)
        work = [(number, row) for number in missing for row in range(sizes[number])]
        rows: list[Sequence[Any]] = []
        for number, _ in tqdm(
            work, desc=f"preparing {', '.join(names)}", unit="case", disable=not work
        ):
            rows.append(make(number * SHARD + len(rows)))
            if len(rows) == sizes[number]:
                for name, arrays in zip(names, zip(*rows, strict=True), strict=True):
                    path = shard_path(self._folder, name, number)
                    with replace_when_done(path) as temporary, temporary.open("wb") as file:
                        np.save(file, np.stack([np.asarray(array) for array in arrays]))
                rows = []
        return [Shards(self._folder, name) for name in names]


class Reading:
    """A `Keep` that reads what was prepared, and writes nothing.

    Args:
      command: what prepares the folder, for the message.

    Raises:
      ConfigError: shards are missing or hold something else.
    """

    def __init__(self, folder: Path, cases: int, command: str):
        self._folder, self._cases, self._command = folder, cases, command

    def __call__(self, names: tuple[str, ...], make: Make, about: About) -> list[Arrays]:
        """See `Keep`."""
        missing = _missing(self._folder, names, self._cases)
        if missing:
            raise ConfigError(
                f"data.folder {self._folder} lacks {len(missing)} of {len(_sizes(self._cases))} "
                f"shards of {names[0]}; prepare them: {self._command}"
            )
        _require_same(self._folder, names, make(0), about)
        return [Shards(self._folder, name) for name in names]


class InMemory:
    """A `Keep` that makes a case when it is asked for, and remembers the latest ones."""

    def __init__(self, most_bytes: int = MEMORY_BYTES):
        self._room = most_bytes
        self._kept: OrderedDict[tuple[tuple[str, ...], int], list[np.ndarray]] = OrderedDict()

    def __call__(self, names: tuple[str, ...], make: Make, about: About) -> list[Arrays]:
        """See `Keep`."""

        def case_arrays(case: int) -> list[np.ndarray]:
            key = (names, case)
            if key not in self._kept:
                self._kept[key] = [np.asarray(array) for array in make(case)]
                self._room -= _bytes(self._kept[key])
            self._kept.move_to_end(key)
            while self._room < 0 and len(self._kept) > 1:
                self._room += _bytes(self._kept.popitem(last=False)[1])
            return self._kept[key]

        def one(i: int) -> Arrays:
            return lambda case: case_arrays(case)[i]

        return [one(i) for i in range(len(names))]


def smallest_id_type(codes: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the ids 0 ... `codes` - 1."""
    return next(t for t in (np.uint8, np.uint16, np.uint32) if codes - 1 <= np.iinfo(t).max)


def shard_path(folder: Path, name: str, number: int) -> Path:
    """File of shard `number` of the arrays `name`."""
    return folder / f"{name}_{number:05d}.npy"


def _bytes(arrays: list[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def _sizes(cases: int) -> list[int]:
    """Cases of each shard."""
    return [min(SHARD, cases - first) for first in range(0, cases, SHARD)]


def _missing(folder: Path, names: tuple[str, ...], cases: int) -> list[int]:
    """Numbers of the shards that are absent, damaged or too short."""
    return [
        number
        for number, size in enumerate(_sizes(cases))
        if any(_rows(shard_path(folder, name, number)) < size for name in names)
    ]


def _rows(path: Path) -> int:
    """Cases in a shard; 0, so that it is made again, if it is missing or damaged."""
    try:
        return len(np.load(path, "r"))
    except (OSError, ValueError, EOFError):
        return 0


def about_path(folder: Path, names: tuple[str, ...]) -> Path:
    """The file that says what the arrays were made from."""
    return folder / f"{names[0]}.json"


def _require_same(
    folder: Path, names: tuple[str, ...], arrays: Sequence[Any], about: About
) -> None:
    """What the arrays were made from must be the same, and case 0 made anew must be the one on
    disk; a few values may round differently."""
    path = about_path(folder, names)
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path} ({error}); delete the folder and prepare it anew"
        ) from None
    for name, value in json.loads(json.dumps(about)).items():
        if recorded.get(name) != value:
            raise ConfigError(
                f"{path}: the cases were made with {name} = {recorded.get(name)!r}, not {value!r}; "
                "choose another folder"
            )
    for name, array in zip(names, arrays, strict=True):
        path = shard_path(folder, name, 0)
        stored = np.load(path, "r")[0]
        made = np.asarray(array)
        if stored.shape != made.shape or np.mean(np.abs(made - stored.astype(int)) > 1) > 0.05:
            raise ConfigError(
                f"{path} does not hold what this version would make of {name}; delete the folder "
                "or choose another"
            )
