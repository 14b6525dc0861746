"""Views that are made from prepared volumes: their ledger, and the volumes case by case."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch_plan import Row
from data_pipelines.ledger import TRAIN, VALIDATION, Ledger, Shard, plan_shards
from data_pipelines.loader import Batch, case_view, stream
from data_pipelines.shard_reader import RecordReader, ShardFolder

SHARD_BYTES = 64 << 20


def derived_ledger(
    folder: Path, volumes: ShardFolder, about: Mapping[str, Any], record_bytes: int
) -> Ledger:
    """The ledger of a view of `volumes`, whose shards are ranges of their records.

    record_bytes: of what a volume becomes, about.

    Raises:
      ConfigError: the folder holds something else.
    """
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


def read_cases(volumes: ShardFolder, shards: Sequence[Shard]) -> Iterator[Batch]:
    """The volumes of the shards' cases one by one, see `case_view`, without their batch axis."""
    view = case_view()
    for split in dict.fromkeys(shard.split for shard in shards):
        records = volumes.split(split)
        cases = [case for shard in shards if shard.split == split for case in shard.cases]
        rows = [[Row(0, case, int(records.depths[case]))] for case in cases]
        reader = RecordReader(records)
        for batch in stream([reader], view, rows.__getitem__, 1, 0, len(rows)):
            yield {name: np.asarray(value[0]) for name, value in batch.items()}


def text_of(case: Batch, name: str) -> str:
    """A text of a case that was read."""
    text: bytes = case[name].item()
    return text.decode("utf-8")
