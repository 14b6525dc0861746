"""Batches for each stage from shards that `launch.prepare` made."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
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
    training_stream,
    volume_view,
)
from data_pipelines.shard_reader import RecordReader, Records, ShardFolder
from gct_jax.errors import ConfigError
from gct_jax.models.token_grid import token_grid
from gct_jax.provenance import identity
from gct_jax.training.config import TrainConfig
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
    count = jax.process_count()
    if batch_size % count:
        raise ConfigError(f"loop.batch_size = {batch_size} is no multiple of {count} processes")
    plan = BatchPlan(depths, data.weights, batch_size, config.loop.seed)
    if sum(len(records.depths) for records in held_out) // per_case < batch_size // count:
        raise ConfigError(
            f"{data.folder} holds out fewer cases than a batch of {batch_size // count} rows; "
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


def shard_batches(
    config: TrainConfig, shards: Shards, encode_text: Encode | None
) -> tuple[Callable[[int], Iterator[Batch]], list[Batch]]:
    """The training batches from a step on, and those held out."""
    view, finish = _view(config, shards), _finish(config, encode_text)
    hold, skip = int(config.data.hold_gb * 1e9), config.data.skip_damaged
    readers = [RecordReader(records, hold, skip) for records in shards.training]
    process = (jax.process_index(), jax.process_count())
    per_case, seed = shards.per_case, config.loop.seed

    def record_of(step: int, row: int, chosen: Row) -> int:
        slice_index = np.random.default_rng([seed, step, row]).integers(per_case)
        return chosen.case * per_case + int(slice_index)

    def batches(start: int) -> Iterator[Batch]:
        rows = training_stream(
            readers,
            view,
            shards.plan,
            config.loop.batch_size,
            start,
            process,
            record_of if per_case > 1 else None,
        )
        return map(finish, rows)

    return batches, [finish(batch) for batch in _held_out(config, shards, view)]


def _held_out(config: TrainConfig, shards: Shards, view: View) -> Iterator[Batch]:
    """About `data.held_out` cases of the validation splits, those of a depth together."""
    size = config.loop.batch_size // jax.process_count()
    skip, per_case = config.data.skip_damaged, shards.per_case
    readers = [RecordReader(records, 0, skip) for records in shards.held_out]
    every = [
        Row(folder, number, int(depth))
        for folder, records in enumerate(shards.held_out)
        for number, depth in enumerate(records.depths)
        if number % per_case == number // per_case % per_case  # a slice of each case
    ]
    chosen = sorted(every[: max(size, config.data.held_out)], key=lambda row: row.depth)
    groups = [chosen[first : first + size] for first in range(0, len(chosen) - size + 1, size)]
    padded = [[row._replace(depth=group[-1].depth) for row in group] for group in groups]
    return stream(readers, view, lambda step: padded[step], size, 0, len(padded))


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
        reports = batch.pop("report", None)
        if reports is not None:
            assert encode_text is not None  # the stage reads reports
            batch["text_ids"] = encode_text([text.decode("utf-8") for text in reports])
        if config.stage == "t5":
            batch["attributes"] = batch.pop("labels").astype(np.int32)
        return batch

    return finish


def reports(shards: Shards) -> Iterator[str]:
    """The reports of the training cases, in order."""
    from data_pipelines.features import tf

    for records in shards.training:
        reader = RecordReader(records)
        for number in range(0, len(records.depths), shards.per_case):
            fields = tf.train.Example.FromString(reader(number)).features.feature
            yield fields["report"].bytes_list.value[0].decode("utf-8")
