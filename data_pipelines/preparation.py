"""A source's cases prepared by several processes, shard by shard, into one ledger."""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from data_pipelines.cases import ListedSource, Listing, Rejected, pseudonym
from data_pipelines.ledger import Ledger
from data_pipelines.pool import in_order
from data_pipelines.prepared_case import Prepared, case_key, prepare_case
from data_pipelines.source import Source, open_source
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

SHARD_BYTES = 128 << 20  # of a shard, about
MOST_THUMBNAILS = 24
PACKED = 0.55  # of a volume's bytes


def per_shard(grid: Grid, cases: int) -> int:
    """Cases of a shard: about 128 MB, and at least eight shards of a large set."""
    depth, height, width = grid.shape
    fitting = int(SHARD_BYTES / (2 * depth * height * width * PACKED))
    return max(1, min(fitting, -(-cases // 8)))


class Identity(NamedTuple):
    """Of everything that is known of a source before a voxel is read: `hash` tells another list,
    `key` is that of pseudonyms, which every machine finds and nobody writes down."""

    hash: str
    key: bytes


def listing_identity(source: Source) -> Identity:
    """The identity of a source's list; looks at the size of every file."""
    digest = hashlib.sha256()
    for case in range(source.cases):
        described: Any = [source.patient(case), source.split(case)]
        if isinstance(source, ListedSource):
            known = source.case(case)
            sizes = [file.stat().st_size for file in known.files]
            described += [known.name, known.report, known.labels, repr(known.reading), sizes]
        digest.update(json.dumps(described).encode("utf-8", "surrogateescape") + b"\n")
    secret = digest.digest()
    return Identity(
        hashlib.sha256(b"listing" + secret).hexdigest(),
        hashlib.sha256(b"pseudonyms" + secret).digest(),
    )


def fill(
    ledger: Ledger,
    source: Source,
    data: DataConfig,
    grid: Grid,
    key: bytes,
    depths: Sequence[int] = (),
    *,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write the shards of this machine's `share` that are missing.

    key: of pseudonyms.

    Raises:
      GctError: a process was killed, the disk is full, or another process writes the same shard.
    """
    from data_pipelines.features import serialize, volume_features

    features, missing = volume_features(), ledger.missing(share)
    cases = [case for shard in missing for case in shard.cases]

    def entries(numbered: tuple[int, Prepared | Rejected]) -> Iterator[tuple[Any, Any]]:
        case, result = numbered
        if isinstance(result, Prepared):
            example = {"volume": (result.packed, result.shape), **result.record}
            yield serialize(features, example), result.facts
        else:
            tqdm.write(f"rejected: {result.name}: {result.reason}", file=sys.stderr)
            yield case_key(source, case, key), _without_name(source, case, result.reason)

    results = _results(source, data, cases, grid, depths, workers, key)
    ledger.write_all(missing, zip(cases, results, strict=True), entries)


def _without_name(source: Source, case: int, reason: str) -> str:
    """A reason that does not say what file names say."""
    if isinstance(source, ListedSource) and not source.names_are_public:
        known = source.case(case)
        for name in (known.name, *(file.name for file in known.files)):
            reason = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", "it", reason)
    return reason


def _results(
    source: Source,
    data: DataConfig,
    cases: Sequence[int],
    grid: Grid,
    depths: Sequence[int],
    workers: int,
    key: bytes,
) -> Iterator[Prepared | Rejected]:
    """Of each case in order, made by `workers` processes."""
    pictures = spread(source.cases, MOST_THUMBNAILS)
    work = functools.partial(_work, data.source, grid=grid, depths=tuple(depths), key=key)
    tasks = ((*task_of(source, data, case), case in pictures) for case in cases)
    return in_order(work, tasks, workers)


def task_of(source: Source, data: DataConfig, case: int) -> tuple[Source | DataConfig, int]:
    """What a process needs for one case: a list of that case alone, or how to open the source."""
    if not isinstance(source, ListedSource):
        return data, case
    alone = ListedSource(Listing((source.case(case),), (), {}))
    alone.names_are_public = source.names_are_public
    return alone, 0


def _work(
    name: str,
    source: Source | DataConfig,
    case: int,
    picture: bool,
    *,
    grid: Grid,
    depths: tuple[int, ...],
    key: bytes,
) -> Prepared | Rejected:
    opened = opened_once(source) if isinstance(source, DataConfig) else source
    return prepare_case(opened, name, case, grid, depths, picture, key)


@functools.lru_cache(maxsize=1)
def opened_once(data: DataConfig) -> Source:
    """The source, which a process opens for the first of its cases."""
    return open_source(data)


def spread(count: int, most: int) -> frozenset[int]:
    """At most `most` of the numbers below `count`, evenly."""
    return frozenset(int(i * count / min(count, most)) for i in range(min(count, most)))


def public_rejections(source: Source, key: bytes, show_names: bool) -> list[list[str]]:
    """[name, reason] of what the source did not list, under pseudonyms unless they may be shown."""
    if not isinstance(source, ListedSource):
        return []
    shown = show_names or source.names_are_public
    return [
        [name if shown else pseudonym(name, key), reason]
        for name, reason in source.listing.rejected
    ]


def numbers_by_key(source: Source, key: bytes) -> dict[str, int]:
    """Numbers of cases by their names in records."""
    return {case_key(source, case, key): case for case in range(source.cases)}
