"""Shards that were prepared, read record by record, from a local disk or an object store.

Paths may be what TensorFlow's file system knows: local ones, gs://, ram:// in tests.
"""

import functools
import json
import os
import threading
import zlib
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.records import load_tensorflow
from gct_jax.errors import ConfigError, InputError
from gct_jax.notes import tell

OPEN_FILES = 64


class Records(NamedTuple):
    """The records of a split.

    paths: of its shards.
    places: int64 [records, 4]: number of the shard, offset, length and checksum.
    depths: int [records].
    """

    paths: list[str]
    places: np.ndarray
    depths: np.ndarray


class ShardFolder:
    """A folder that `launch.prepare` finished.

    Attributes:
      path: as given. about: what it was made from. manifest: see `Ledger.write_manifest`.

    Raises:
      ConfigError: it is no such folder, or not finished.
    """

    def __init__(self, path: str):
        self.path = path
        self.about: dict[str, Any] = self._json("about.json")
        self.manifest: dict[str, Any] = self._json("manifest.json")

    @property
    def kind(self) -> str:
        """ "volumes", "tokens" or "pairs"."""
        return str(self.about.get("kind"))

    def split(self, name: str) -> Records:
        """Its records, in the order of the shards."""
        shards = {
            path: entry for path, entry in self.manifest.items()
            if os.path.basename(path).startswith(f"{name}-")
        }  # fmt: skip
        places = [
            [number, *place] for number, entry in enumerate(shards.values())
            for place in entry["places"]
        ]  # fmt: skip
        depths = [depth for entry in shards.values() for depth in entry["depths"]]
        return Records(
            [f"{self.path.rstrip('/')}/{path}" for path in shards],
            np.array(places, np.int64).reshape(-1, 4),
            np.array(depths, int),
        )

    def _json(self, name: str) -> dict[str, Any]:
        files = load_tensorflow().io.gfile
        path = f"{self.path.rstrip('/')}/{name}"
        try:
            with files.GFile(path) as file:
                values = json.loads(file.read())
        except Exception as error:  # of every file system its own
            if name == "manifest.json":
                raise ConfigError(
                    f"{self.path} is not finished; run its launch.prepare command again"
                ) from None
            raise ConfigError(f"{self.path} is no folder of shards ({error})") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is damaged; run its launch.prepare command again")
        return values


class RecordReader:
    """The contents of a split's records.

    Args:
      hold_bytes: records that together are no larger are read at once and kept.
      skip_damaged: the next whole record of the same depth stands for a damaged one, which is told.

    Raises:
      InputError: a record is damaged (and `skip_damaged` is not set).
    """

    def __init__(self, records: Records, hold_bytes: int = 0, skip_damaged: bool = False):
        self._records, self._skip = records, skip_damaged
        self._told: set[int] = set()
        self._held: list[bytes] | None = None
        if records.places[:, 2].sum() <= hold_bytes:
            self._held = [self._checked(i) for i in range(len(records.places))]

    def __call__(self, number: int, depth: int = 0) -> bytes:
        """Record `number`; depth: that its batch is padded to."""
        return self._held[number] if self._held is not None else self._checked(number, depth)

    def _checked(self, number: int, depth: int = 0) -> bytes:
        for ahead in range(len(self._records.places)):
            i = (number + ahead) % len(self._records.places)
            if ahead and not 0 < self._records.depths[i] <= (depth or self._records.depths[number]):
                continue
            shard, *place = self._records.places[i].tolist()
            try:
                return _read(self._records.paths[shard], *place)
            except InputError as error:
                if not self._skip:
                    raise
                if i not in self._told:
                    tell(f"passed over: {str(error).split(': delete')[0]}")
                    self._told.add(i)
        raise InputError(f"{self._records.paths[0]}: no record is whole")


def _read(path: str, offset: int, length: int, checksum: int) -> bytes:
    """The content of one record.

    Raises:
      InputError: the shard is damaged; the message names it and the record's place.
    """
    content = _open_file(path).read_at(offset, length)
    if len(content) != length or zlib.crc32(content) != checksum:
        raise InputError(
            f"{path} is damaged at byte {offset}: delete it and prepare it again, or train on with "
            "data.skip_damaged=True"
        )
    return content


@functools.lru_cache(maxsize=OPEN_FILES)
def _open_file(path: str) -> "_Seekable":
    return _Seekable(path)


class _Seekable:
    """A file of TensorFlow's file system that several threads read in turn."""

    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        self._file = load_tensorflow().io.gfile.GFile(path, "rb")

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end.

        Raises:
          InputError: the file cannot be read.
        """
        try:
            with self._lock:
                self._file.seek(offset)
                content: bytes = self._file.read(length)
        except Exception as error:  # of every file system its own
            raise InputError(f"{self._path}: cannot be read ({error})") from None
        return content
