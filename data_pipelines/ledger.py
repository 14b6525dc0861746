"""What of a folder of shards is done, who writes what, and what it was made from.

    FOLDER/about.json          what the shards are made from; another value is refused
    FOLDER/shards/             see `data_pipelines.records`
    FOLDER/manifest.json       where every record lies, once all shards are done
    FOLDER/locks/              a folder for each shard that is being written

A shard is a range of cases; it is done when its files have appeared whole. Any number of machines
with a common folder, or with folders that are put together later, share the shards out among them.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from data_pipelines.records import ShardInfo, read_info, shard_name, write_shard
from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done

T = TypeVar("T")
FORMAT = 1
DATASET = "gct_volumes"  # where TensorFlow Datasets begins to write before we do
TRAIN, VALIDATION = "train", "validation"


class Shard(NamedTuple):
    """Number `number` of a split, and the cases that belong to it."""

    split: str
    number: int
    cases: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its files, without suffix."""
        return shard_name(self.split, self.number)


def plan_shards(splits: Mapping[str, Sequence[int]], per_shard: int) -> list[Shard]:
    """Shards of at most `per_shard` cases each, in the order of the splits and the cases."""
    return [
        Shard(split, first // per_shard, tuple(cases[first : first + per_shard]))
        for split, cases in splits.items()
        for first in range(0, len(cases), per_shard)
    ]


class Ledger:
    """The shards of one folder.

    Args:
      about: what they are made from, as plain values.

    Raises:
      ConfigError: the folder holds shards that were made from something else.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], shards: Sequence[Shard]):
        self.folder, self.shards = folder, list(shards)
        self.shard_folder = folder / "shards"
        self.about = json.loads(json.dumps({"format": FORMAT, **about}))
        path = folder / "about.json"
        if path.exists():
            _require_same(path, self.about)
        elif folder.is_dir() and {entry.name for entry in folder.iterdir()} - {DATASET}:
            raise ConfigError(f"{folder} is not empty and holds no shards; give another --out")
        else:
            with replace_when_done(path) as temporary:
                temporary.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[Shard]:
        """Shards that are not done, of those that machine `share` = (index, count) makes."""
        index, count = share
        return [shard for shard in self.shards[index::count] if self.info(shard) is None]

    def info(self, shard: Shard) -> ShardInfo | None:
        """Of a shard that is done, else None."""
        return read_info(self.shard_folder, shard.name)

    def infos(self, split: str) -> list[ShardInfo]:
        """Of all shards of a split.

        Raises:
          ConfigError: one is not done.
        """
        found = [self.info(shard) for shard in self.shards if shard.split == split]
        done = [info for info in found if info is not None]
        if len(done) < len(found):
            raise ConfigError(f"{self.folder}: {len(found) - len(done)} shards are missing")
        return done

    def write(self, shard: Shard, contents: Iterable[Any]) -> None:
        """Write a shard, see `write_shard`.

        Raises:
          GctError: another process is at it, or the disk is full.
        """
        with self.alone(shard):
            if self.info(shard) is None:
                write_shard(self.shard_folder, shard.name, contents)

    def write_all(
        self,
        shards: Sequence[Shard],
        results: Iterator[T],
        entries: Callable[[T], Iterable[Any]],
        what: str = "preparing",
    ) -> None:
        """Write shards one after the other, with a progress bar.

        Args:
          results: one for each of the shards' cases, in order.
          entries: what `write_shard` takes, from a result.

        Raises:
          GctError: another process is at a shard, or the disk is full.
        """
        total = sum(len(shard.cases) for shard in shards)
        with tqdm(total=total, unit="CT", desc=what, disable=not total) as bar:
            for shard in shards:
                own = itertools.islice(results, len(shard.cases))
                self.write(shard, (entry for one in _counted(own, bar) for entry in entries(one)))
                # A shard that another process has just finished takes none of its results.
                for _ in _counted(own, bar):
                    pass

    def write_manifest(self) -> None:
        """FOLDER/manifest.json: of every shard its records' places and depths, and its SHA-256, by
        which a copy can be checked. All shards must be done; what a kill left half-written beside
        them is removed."""
        entries = {}
        for split in dict.fromkeys(shard.split for shard in self.shards):
            names = [shard.name for shard in self.shards if shard.split == split]
            for name, info in zip(names, self.infos(split), strict=True):
                entries[f"shards/{name}.tfrecord"] = {
                    "bytes": info.bytes,
                    "sha256": info.sha256,
                    "places": info.places,
                    "depths": [facts["slices"] for facts in info.facts],
                }
        for left in self.shard_folder.glob(".gct-*"):
            left.unlink(missing_ok=True)
        with replace_when_done(self.folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def alone(self, shard: Shard) -> Iterator[None]:
        """Hold a shard's lock during the body."""
        from gct_jax.runtime.lock import locked

        folder = self.folder / "locks" / shard.name
        with locked(folder, "wait for it; machines that work at once need --shards and --shard"):
            yield
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are at work
            folder.parent.rmdir()


def _counted(results: Iterator[T], bar: tqdm) -> Iterator[T]:
    for result in results:
        bar.update()
        yield result


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder's shards were made from.

    Raises:
      ConfigError: it is no such folder.
    """
    path = folder / "about.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no folder of shards ({path.name}: {error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(f"{path}: not of format {FORMAT}")
    return values


def _require_same(path: Path, about: Mapping[str, Any]) -> None:
    recorded, about = _flat(read_about(path.parent)), _flat(about)
    for name in {**about, **recorded}:
        if recorded.get(name) != about.get(name):
            if name == "listing":
                raise ConfigError(
                    f"{path.parent} was prepared from other CTs, reports or labels than there are "
                    "now; give another --out, or the files as they were"
                )
            was, now = (json.dumps(x.get(name))[:80] for x in (recorded, about))
            raise ConfigError(
                f"{path.parent} was prepared with {name} = {was}, not {now}; give another --out"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
