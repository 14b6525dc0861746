"""Shards: TFRecord files that appear whole, each with an index beside it.

    train-00003.tfrecord    records one after the other
    train-00003.json        {"records": n, "bytes": size, "sha256": of the file,
                             "places": [[offset, length, crc32], ...] of each record's content,
                             "facts": of each record, "rejected": [[name, reason], ...],
                             "dropped": facts of records that were taken out again}

The index is written first and names the size of the other file, so a shard is done when both are
there and the size is right.
"""

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gct_jax.errors import ConfigError, InputError
from gct_jax.runtime.files import replace_when_done

BEFORE, AFTER = 12, 4  # bytes of TFRecord around a content: length and checksums


class ShardInfo(NamedTuple):
    """What the index of a shard says; see the module's first lines."""

    records: int
    bytes: int
    sha256: str
    places: list[list[int]]
    facts: list[dict[str, Any]]
    rejected: list[list[str]]
    dropped: list[dict[str, Any]]


def shard_name(split: str, number: int) -> str:
    """Without suffix."""
    return f"{split}-{number:05d}"


def write_shard(
    folder: Path,
    name: str,
    contents: Iterable[tuple[bytes, dict[str, Any]] | tuple[str, str]],
    dropped: Sequence[dict[str, Any]] = (),
) -> ShardInfo:
    """Write a shard from (content, facts) of records and (name, reason) of what was rejected, as
    they come; dropped: facts of records that it had before.

    Raises:
      InputError: the disk is full, or the folder cannot be written to.
    """
    tensorflow = load_tensorflow()
    places: list[list[int]] = []
    facts: list[dict[str, Any]] = []
    rejected: list[list[str]] = []
    position = 0
    with replace_when_done(folder / f"{name}.tfrecord") as temporary:
        with _told(tensorflow, folder), tensorflow.io.TFRecordWriter(str(temporary)) as writer:
            for one, other in contents:
                if isinstance(one, str):
                    rejected.append([one, str(other)])
                    continue
                assert isinstance(other, dict)  # it comes with a record
                writer.write(one)
                places.append([position + BEFORE, len(one), zlib.crc32(one)])
                facts.append(other)
                position += BEFORE + len(one) + AFTER
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        info = ShardInfo(len(places), position, sha256, places, facts, rejected, list(dropped))
        with replace_when_done(folder / f"{name}.json") as described:
            described.write_text(json.dumps(info._asdict()) + "\n", encoding="utf-8")
    return info


@contextlib.contextmanager
def _told(tensorflow: Any, folder: Path) -> Iterator[None]:
    """TensorFlow's errors as one of ours."""
    try:
        yield
    except tensorflow.errors.OpError as error:
        raise InputError(f"cannot write {folder}: {' '.join(str(error.message).split())}") from None


def read_info(folder: Path, name: str) -> ShardInfo | None:
    """The index of a shard that is done, else None."""
    try:
        values = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        info = ShardInfo(**values)
        size = (folder / f"{name}.tfrecord").stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return info if size == info.bytes else None


def rewrite_without(folder: Path, name: str, dropped: Sequence[int], reason: str) -> ShardInfo:
    """Write a shard anew without some of its records, which count as rejected for `reason`."""
    info = read_info(folder, name)
    assert info is not None  # the caller has just read it
    with (folder / f"{name}.tfrecord").open("rb") as file:

        def contents() -> Iterable[Any]:
            yield from (tuple(pair) for pair in info.rejected)
            for i, (offset, length, _) in enumerate(info.places):
                if i in dropped:
                    yield info.facts[i]["case"], reason
                else:
                    file.seek(offset)
                    yield file.read(length), info.facts[i]

        gone = [*info.dropped, *(info.facts[i] for i in dropped)]
        return write_shard(folder, name, contents(), gone)


def load_tensorflow() -> Any:
    """TensorFlow, told to leave accelerators alone and to say little.

    Raises:
      ConfigError: it is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow
    except ModuleNotFoundError:
        raise ConfigError(
            "TensorFlow is missing, which streams shards; pip install '.[data]'"
        ) from None
    for kind in ("GPU", "TPU"):
        tensorflow.config.set_visible_devices([], kind)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of what it does itself
    return tensorflow
