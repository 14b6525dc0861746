"""Batches for each stage from shards that `launch.prepare` made."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.batch_plan import BatchPlan, Row
from data_pipelines.labels import LABELS
from data_pipelines.ledger import TRAIN, VALIDATION
from data_pipelines.loader import (
    Batch,
    View,
    pair_view,
    report_view,
    stream,
    token_view,
    volume_view,
)
from data_pipelines.shard_reader import RecordReader, Records, ShardFolder
from gct_jax.errors import ConfigError, InputError
from gct_jax.models.token_grid import token_grid
from gct_jax.provenance import identity
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import HeldOut
from gct_jax.training.stages import Components
from launch.grids import require_grid

KINDS = {"ctvit": "volumes", "t5": "volumes", "maskgit": "tokens", "superres": "pairs"}
Encode = Callable[[list[str]], np.ndarray]


class Shards(NamedTuple):
    """What a stage trains on.

    folders: of shards.
    training, held_out: the records of each. per_case: records of a case.
    """

    folders: list[ShardFolder]
    training: list[Records]
    held_out: list[Records]
    per_case: int
    plan: BatchPlan


def open_shards(config: TrainConfig, components: Components) -> Shards:
    """Open the folders of `config.data`, which must be what the stage reads.

    Raises:
      ConfigError: they are not, or were made on another grid or by other networks; too few cases.
    """
    data, stage, batch_size = config.data, config.stage, config.loop.batch_size
    if not data.folder:
        raise ConfigError("data.source=shards needs data.folder, what launch.prepare wrote")
    if getattr(getattr(config, stage), "counterfactual_pairs", False):
        raise ConfigError(f"shards hold no counterfactuals; set {stage}.counterfactual_pairs=False")
    folders = [ShardFolder(path) for path in (data.folder, *data.more_folders)]
    for folder in folders:
        _check(config, components, folder)
    first = folders[0].about
    for name in ("per_case", "codec", "text_encoder", "text_width"):
        if any(folder.about.get(name) != first.get(name) for folder in folders):
            raise ConfigError(f"the folders of shards differ in {name}")
    per_case = int(first.get("per_case", 1))
    training = [folder.split(TRAIN) for folder in folders]
    held_out = [folder.split(VALIDATION) for folder in folders]
    depths = [records.depths[::per_case] for records in training]
    plan = BatchPlan(depths, data.weights, batch_size, config.loop.seed)
    if sum(len(records.depths) for records in held_out) // per_case < batch_size:
        raise ConfigError(
            f"{data.folder} holds out fewer cases than a batch of {batch_size} rows; "
            "prepare with a larger --held-out, or take a smaller loop.batch_size"
        )
    return Shards(folders, training, held_out, per_case, plan)


def _check(config: TrainConfig, components: Components, folder: ShardFolder) -> None:
    """Raise ConfigError unless a folder fits the stage and the model."""
    about, expected = folder.about, KINDS[config.stage]
    if folder.kind != expected:
        option = {"tokens": "--tokens", "pairs": "--pairs", "volumes": "--source"}[expected]
        raise ConfigError(
            f"{folder.path} holds {folder.kind}; stage {config.stage} reads {expected}: "
            f"launch.prepare {option}"
        )
    if config.stage == "t5":
        if config.t5.attributes != len(LABELS):
            raise ConfigError(f"shards have {len(LABELS)} labels: set t5.attributes={len(LABELS)}")
        return
    require_grid(config.model, about["shape"], about["spacing_mm"], folder.path)
    codec = config.model.ctvit
    if codec is not None:
        for depth in about["depths"]:
            token_grid(
                depth,
                *about["shape"][1:],
                patch_size=codec.patch_size,
                temporal_patch_size=codec.temporal_patch_size,
            )
    if "codec" in about:
        _require_made_by(config, components, folder, "ctvit", about["codec"])
    if about.get("text_encoder") and not config.maskgit.train_text_encoder:
        _require_made_by(config, components, folder, "t5", about["text_encoder"])


def _require_made_by(
    config: TrainConfig, components: Components, folder: ShardFolder, name: str, made_by: str
) -> None:
    if name not in components.variables:
        raise ConfigError(f"stage {config.stage} needs {name}: --from the folder that has it")
    own = identity(components.variables[name])
    if own != made_by:
        raise ConfigError(
            f"{folder.path} was made by another {name} ({made_by[:8]}, not {own[:8]}); prepare it "
            "with this one, or give --from what made it"
        )


class ShardBatches:
    """The batches of a stage's shards, this process's rows of them.

    own_rows: rows of a global batch -> the numbers of those that this process holds.
    """

    def __init__(
        self,
        config: TrainConfig,
        shards: Shards,
        encode_text: Encode | None,
        own_rows: Callable[[int], Sequence[int]],
    ):
        self._config, self._shards, self._own_rows = config, shards, own_rows
        self._view, self._finish = _view(config, shards), _finish(config, encode_text)
        self._batch_size, self._skip = config.loop.batch_size, config.data.skip_damaged

    def training(self, start: int) -> Iterator[Batch]:
        """Those of the steps from `start` on."""
        hold = int(self._config.data.hold_gb * 1e9)
        readers = [RecordReader(records, hold, self._skip) for records in self._shards.training]
        own = self._own_rows(self._batch_size)

        def rows_of(step: int) -> list[Row]:
            every = self._rows(step)
            return [every[number] for number in own]

        return map(self._finish, stream(readers, self._view, rows_of, len(own), start))

    def _rows(self, step: int) -> list[Row]:
        """Of the global batch; `case` numbers the record, of a case with several one drawn by seed,
        step and row."""
        rows, per_case = self._shards.plan.rows(step), self._shards.per_case
        if per_case == 1:
            return rows
        seed = self._config.loop.seed
        drawn = [
            int(np.random.default_rng([seed, step, number]).integers(per_case))
            for number in range(len(rows))
        ]
        return [
            row._replace(case=row.case * per_case + slice_index)
            for row, slice_index in zip(rows, drawn, strict=True)
        ]

    def cases_of(self, step: int) -> str:
        """The records of a global batch in words."""
        folders = self._shards.folders
        named: dict[str, list[int]] = {}
        for row in self._rows(step):
            named.setdefault(str(folders[row.folder].path), []).append(row.case)
        return "; ".join(
            f"training records {', '.join(map(str, cases))} of {folder}"
            for folder, cases in named.items()
        )

    def held_out(self) -> list[HeldOut]:
        """About `data.held_out` cases of the validation splits, those of a depth together."""
        return [HeldOut(len(group), self._batch(group)) for group in self._groups()]

    def shown(self, rows: int) -> Batch:
        """The first rows of the first batch that is held out, the same on every process."""
        return self._read(self._groups()[0][:rows])

    def _groups(self) -> list[list[Row]]:
        size, per_case = self._batch_size, self._shards.per_case
        every = [
            Row(folder, number, int(depth))
            for folder, records in enumerate(self._shards.held_out)
            for number, depth in enumerate(records.depths)
            if number % per_case == number // per_case % per_case  # a slice of each case
        ]
        chosen = sorted(every[: max(size, self._config.data.held_out)], key=lambda row: row.depth)
        groups = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        return [[row._replace(depth=group[-1].depth) for row in group] for group in groups]

    def _batch(self, group: list[Row]) -> Batch:
        return self._read([group[number] for number in self._own_rows(len(group))])

    def _read(self, rows: list[Row]) -> Batch:
        readers = [RecordReader(records, 0, self._skip) for records in self._shards.held_out]
        (batch,) = stream(readers, self._view, lambda step: rows, len(rows), 0, 1)
        return self._finish(batch)


def _view(config: TrainConfig, shards: Shards) -> View:
    every = [*shards.training, *shards.held_out]
    masked = len({int(depth) for records in every for depth in records.depths}) > 1
    if config.stage == "ctvit":
        return volume_view(masked)
    if config.stage == "superres":
        return pair_view()
    if config.stage == "t5":
        return report_view()
    t5 = config.model.t5
    assert t5 is not None  # launch.data has looked
    about = shards.folders[0].about
    width, codes = int(about["text_width"]), int(about["codebook_size"])
    embedded = uses_embeddings(config, shards)
    return token_view(width, codes, t5.max_length, masked, embedded)


def uses_embeddings(config: TrainConfig, shards: Shards) -> bool:
    """Whether MaskGIT reads the text embeddings of the shards instead of the reports."""
    stored = bool(shards.folders[0].about.get("text_encoder"))
    return config.stage == "maskgit" and stored and not config.maskgit.train_text_encoder


def _finish(config: TrainConfig, encode_text: Encode | None) -> Callable[[Batch], Batch]:
    """Reports into ids, labels into attributes."""

    def finish(batch: Batch) -> Batch:
        batch = dict(batch)
        reports, cases = batch.pop("report", None), batch.pop("case", None)
        if reports is not None:
            _require_reports(reports, cases)
            assert encode_text is not None  # the stage reads reports
            batch["text_ids"] = encode_text([text.decode("utf-8") for text in reports])
        if config.stage == "t5":
            batch["attributes"] = batch.pop("labels").astype(np.int32)
        return batch

    return finish


def _require_reports(reports: np.ndarray, cases: np.ndarray | None) -> None:
    """Shards of tokens and pairs hold no case without a report; those of volumes may."""
    if cases is not None and not all(reports):
        empty = ", ".join(
            case.decode() for case, text in zip(cases, reports, strict=True) if not text
        )
        raise InputError(
            f"case {empty} has no report, and stage t5 learns from reports; prepare without such "
            "cases"
        )


def reports(shards: Shards) -> Iterator[str]:
    """The reports of the training cases, in order."""
    from data_pipelines.features import tf

    for records in shards.training:
        reader = RecordReader(records)
        for number in range(0, len(records.depths), shards.per_case):
            fields = tf.train.Example.FromString(reader(number)).features.feature
            yield fields["report"].bytes_list.value[0].decode("utf-8")
