"""Volumes with their reports, prepared once: the first of the views that stages train on.

FOLDER/about.json  shards/  locks/     see `data_pipelines.ledger`
FOLDER/gct_volumes/                    the same for TensorFlow Datasets
FOLDER/manifest.json                   size, records and SHA-256 of every shard
FOLDER/report.html, report.json        what came out, see `data_pipelines.report`
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines import preparation
from data_pipelines.checks import split_cases
from data_pipelines.ledger import TRAIN, VALIDATION, Ledger, Shard, plan_shards, read_about
from data_pipelines.prepared_case import case_name
from data_pipelines.records import rewrite_without
from data_pipelines.report import Summary, summarize, write_report
from data_pipelines.source import open_source
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

KIND = "volumes"
ALL_CASES = 10**9  # of `DataConfig.cases`: whatever a data set has
COPIED = "the same voxels as a held-out case"


class Outcome(NamedTuple):
    """Of a call of `prepare`: shards that other machines still owe, and, when there are none, what
    came out."""

    missing: int
    summary: Summary | None


def prepare(
    folder: Path,
    data: DataConfig,
    grid: Grid,
    *,
    depths: Sequence[int] = (),
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    cases_per_shard: int | None = None,
    show_names: bool = False,
    dataset: bool = True,
) -> Outcome:
    """Prepare a source's cases, as far as they are this machine's; what exists is kept.

    Args:
      folder: is made.
      grid: its shape and spacing count.
      depths: see `gct_jax.volumes.placement.place`; () for the grid's own.
      workers: processes.
      share: (index, count) of this machine among several.
      cases_per_shard: None chooses it by the size of a volume.
      show_names: of files, in the report.
      dataset: also write the files of TensorFlow Datasets.

    Raises:
      ConfigError: the source cannot be opened, or the folder holds something else.
      GctError: a process was killed, or another writes the same shard.
    """
    source = open_source(data)
    if source.cases >= ALL_CASES:
        raise ConfigError(f"data.source {data.source} makes as many as asked for; say --cases N")
    training, held_out = split_cases(source, data.source)
    splits = {TRAIN: training, VALIDATION: held_out}
    identity = preparation.listing_identity(source)
    count = cases_per_shard or preparation.per_shard(grid, source.cases)
    about = {
        "kind": KIND,
        "data": {
            "source": data.source,
            "root": str(Path(data.root).resolve()) if data.root else "",
            "reports": str(Path(data.reports).resolve()) if data.reports else "",
            "exclude": [str(Path(file).resolve()) for file in data.exclude],
            "text": data.text,
            "one_per_scan": data.one_per_scan,
            "held_out": data.held_out,
            "cases": data.cases,
        },
        "shape": grid.shape,
        "spacing_mm": [round(x, 6) for x in grid.spacing_mm],
        "depths": sorted(depths),
        "splits": {name: len(cases) for name, cases in splits.items()},
        "per_shard": count,
        "listing": identity.hash,
    }
    ledger = Ledger(folder, about, plan_shards(splits, count))
    preparation.fill(ledger, source, data, grid, identity.key, depths, workers=workers, share=share)
    missing = len(ledger.missing())
    if missing:
        return Outcome(missing, None)
    copies = drop_copies(ledger)
    ledger.write_manifest()
    if dataset:
        from data_pipelines.tfds_volumes import write_dataset

        write_dataset(folder)
    numbers = preparation.numbers_by_key(source, identity.key) if show_names else {}
    names = {key: case_name(source, case) for key, case in numbers.items()}
    listed = preparation.public_rejections(source, identity.key, show_names)
    facts = getattr(getattr(source, "listing", None), "facts", {})
    summary = summarize(ledger, listed, copies, facts)
    write_report(folder, summary, names)
    return Outcome(0, summary)


def open_preparation(folder: Path) -> Ledger:
    """What was prepared in a folder, to read it; `Shard.cases` are then positions in a split.

    Raises:
      ConfigError: it holds no volumes.
    """
    about = read_about(folder)
    if about.get("kind") != KIND:
        raise ConfigError(f"{folder} holds {about.get('kind')}, not {KIND}")
    splits = {name: range(count) for name, count in about["splits"].items()}
    return Ledger(folder, about, plan_shards(splits, about["per_shard"]))


def drop_copies(ledger: Ledger) -> list[list[str]]:
    """Take training cases whose voxels a held-out case has too out of their shards.

    Returns:
      The groups of cases with the same voxels that were found, by their names in records.
    """
    places: dict[str, list[tuple[Shard, int, str]]] = defaultdict(list)
    earlier: dict[str, list[str]] = defaultdict(list)  # taken out when this was prepared before
    for shard in ledger.shards:
        info = ledger.info(shard)
        assert info is not None  # all are done
        for i, facts in enumerate(info.facts):
            places[facts["content"]].append((shard, i, facts["case"]))
        for facts in info.dropped:
            earlier[facts["content"]].append(facts["case"])
    dropped: dict[Shard, list[int]] = defaultdict(list)
    groups: list[list[str]] = []
    for content, same in places.items():
        names = [*earlier[content], *(name for _, _, name in same)]
        if len(names) == 1:
            continue
        groups.append(names)
        if {shard.split for shard, _, _ in same} == {TRAIN, VALIDATION}:
            for shard, i, _ in same:
                if shard.split == TRAIN:
                    dropped[shard].append(i)
    for shard, chosen in dropped.items():
        with ledger.alone(shard):
            rewrite_without(ledger.shard_folder, shard.name, chosen, COPIED)
    return groups
