"""Views that are made from prepared volumes: their ledger, and the volumes case by case."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch_plan import Row
from data_pipelines.ledger import TRAIN, VALIDATION, Ledger, Shard, plan_shards
from data_pipelines.loader import Batch, case_view, stream
from data_pipelines.shard_reader import RecordReader, Records, ShardFolder
from gct_jax.errors import ConfigError

SHARD_BYTES = 64 << 20


def derived_ledger(
    folder: Path, volumes: ShardFolder, about: Mapping[str, Any], record_bytes: int
) -> Ledger:
    """The ledger of a view of `volumes`, whose shards are ranges of their records.

    record_bytes: of what a volume becomes, about.

    Raises:
      ConfigError: `volumes` are none, or the folder holds something else.
    """
    if volumes.kind != "volumes":
        raise ConfigError(f"{volumes.path} holds {volumes.kind}, not volumes")
    splits = {name: range(len(volumes.split(name).depths)) for name in (TRAIN, VALIDATION)}
    per_shard = max(1, min(4096, SHARD_BYTES // record_bytes))
    manifest = json.dumps(volumes.manifest, sort_keys=True).encode()
    whole = {
        **about,
        "volumes": hashlib.sha256(manifest).hexdigest(),
        "splits": {name: len(cases) for name, cases in splits.items()},
        "per_shard": per_shard,
        **{
            name: volumes.about[name]
            for name in ("shape", "spacing_mm", "depths", "data", "listing")
        },
    }
    return Ledger(folder, whole, plan_shards(splits, per_shard))


def read_cases(volumes: ShardFolder, shard: Shard) -> Iterator[Batch]:
    """The volumes of a shard's cases one by one, see `case_view`, without their batch axis."""
    records: Records = volumes.split(shard.split)
    rows = [Row(0, case, int(records.depths[case])) for case in shard.cases]
    view, reader = case_view(), RecordReader(records)
    for batch in stream([reader], view, lambda step: [rows[step]], 1, 0, len(rows)):
        yield {name: np.asarray(value[0]) for name, value in batch.items()}
