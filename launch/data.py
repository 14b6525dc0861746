"""Batches for each stage, from what was prepared or, of the phantom, is rendered in memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from data_pipelines import batches
from data_pipelines.checks import checked_report
from data_pipelines.shards import Arrays, InMemory, Keep, Reading
from data_pipelines.source import Source
from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done
from gct_jax.text import Tokenizer, train_vocabulary
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import HeldOut
from gct_jax.training.stages import Components
from launch.arrays import Cases, open_cases, stage_arrays
from launch.extras import require_extras

if TYPE_CHECKING:
    from launch.shard_data import Shards

SHARDS = "shards"  # of `DataConfig.source`
VOCABULARY_REPORTS = 10000
SHOWN_ROWS = 4  # of which sample images are drawn

OwnRows = Callable[[int], Sequence[int]]


class StageData(NamedTuple):
    """What the loop needs of this process.

    batches: `batches(start_step)` yields its rows of the global batches from there on.
    held_out: the batches for evaluation.
    shown: rows of the first of them to draw sample images of, the same on every process.
    cases_of: step -> the cases of its global batch in words.
    """

    batches: Callable[[int], Iterator[batches.Batch]]
    held_out: list[HeldOut]
    shown: batches.Batch
    cases_of: Callable[[int], str]


def check_data(config: TrainConfig, components: Components, prepare: str) -> "Cases | Shards":
    """Open the cases; refuse those that `stage_data` could not make batches from.

    Args:
      prepare: the command that prepares this stage's data, for the message.

    Raises:
      ConfigError: no such source, it lacks what the stage needs or must be prepared, no training
        case is left, a batch does not hold whole cases, or the stage needs a network that no
        earlier folder holds.
    """
    batch_size = config.loop.batch_size
    if config.data.source == SHARDS:
        require_extras("data")
        from launch.shard_data import open_shards

        check_networks(config, components)
        return open_shards(config, components)
    cases = check_source(config, components)
    rows_per_case, held_out = len(cases.sources), cases.held_out
    if batch_size % rows_per_case:
        raise ConfigError(
            f"loop.batch_size = {batch_size} is not a multiple of {rows_per_case} rows per case"
        )
    if len(cases.training) * rows_per_case < batch_size:
        raise ConfigError(
            f"data.source {config.data.source} has {len(cases.training)} training cases, fewer "
            f"than a batch of {batch_size} rows"
        )
    if len(held_out) * rows_per_case < batch_size:
        raise ConfigError(
            f"data.source {config.data.source} holds out {len(held_out)} cases, fewer than a batch "
            f"of {batch_size} rows"
        )
    if config.stage == "t5" or config.data.folder:
        return cases
    if not cases.sources[0].rendered:
        raise ConfigError(
            f"cases of data.source {config.data.source} must be prepared first: {prepare}; then "
            "name the folder as data.folder"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"{jax.process_count()} processes train on prepared cases only: {prepare}; then name "
            "the folder as data.folder"
        )
    return cases


def check_source(config: TrainConfig, components: Components) -> Cases:
    """The cases, if they and the earlier networks have what the stage needs.

    Raises:
      ConfigError: they have not.
    """
    cases = open_cases(config)
    if config.stage != "ctvit":
        checked_report(cases.sources[0], config.data.source, 0, np.random.default_rng(0))
    check_networks(config, components)
    if config.stage == "t5":
        check_attributes(config, cases.sources[0])
    return cases


def check_networks(config: TrainConfig, components: Components) -> None:
    """Raise ConfigError unless the earlier networks that the stage needs are there."""
    stage = config.stage
    if stage in ("maskgit", "superres") and "ctvit" not in components.variables:
        raise ConfigError(f"stage {stage} needs CT-ViT: --from the ctvit folder")
    if stage != "ctvit" and config.model.t5 is None:
        raise ConfigError(f"stage {stage} needs model.t5")
    if stage == "superres" and "t5" not in components.variables:
        raise ConfigError("stage superres needs the text encoder: --from the maskgit folder")


def check_attributes(config: TrainConfig, source: Source) -> None:
    """Raise ConfigError unless the source has the attributes that stage t5 is to read."""
    found = source.attributes(0, source.report(0, np.random.default_rng(0)))
    if found is None:
        raise ConfigError(
            f"stage t5 learns to read labels, and data.source {config.data.source} has none"
        )
    if len(found) != config.t5.attributes:
        raise ConfigError(
            f"t5.attributes = {config.t5.attributes}, data.source {config.data.source} has "
            f"{len(found)}"
        )


def stage_data(
    config: TrainConfig,
    cases: "Cases | Shards",
    workdir: Path,
    components: Components,
    prepare: str,
    own_rows: OwnRows,
) -> StageData:
    """Open what was prepared of the cases that `check_data` accepts.

    Args:
      own_rows: rows of a global batch -> the numbers of those that this process holds.

    Raises:
      ConfigError: `data.folder` lacks cases or holds others; the message names the command
        `prepare`.
    """
    loop, folder = config.loop, config.data.folder
    if not isinstance(cases, Cases):
        return _shard_data(config, cases, workdir, components, own_rows)
    sources, training, held_out = cases
    copies, rows = len(sources), loop.batch_size
    together = rows // copies  # cases of a global batch
    keep: Keep = Reading(Path(folder), sources[0].cases, prepare) if folder else InMemory()
    arrays = stage_arrays(config, sources, components, keep)
    make_batch = batch_maker(config, cases, arrays, workdir, components)

    def make_rows(step: int, chosen: list[int], numbers: Sequence[int]) -> batches.Batch:
        return make_batch(step, batches.rows_of(chosen, numbers, copies))

    def training_batch(step: int, positions: list[int]) -> batches.Batch:
        return make_rows(step, [training[position] for position in positions], own_rows(rows))

    def stream(start: int) -> Iterator[batches.Batch]:
        return batches.stream(training_batch, start, loop.seed, together, len(training))

    def cases_of(step: int) -> str:
        positions = batches.batch_cases(loop.seed, step, together, len(training))
        return f"cases {', '.join(str(training[position]) for position in positions)}"

    groups = [held_out[first : first + together] for first in range(0, len(held_out), together)]
    evaluated = [
        HeldOut(len(group) * copies, make_rows(0, group, own_rows(len(group) * copies)))
        for group in groups
    ]
    shown = make_rows(0, groups[0], range(min(SHOWN_ROWS, rows)))
    return StageData(stream, evaluated, shown, cases_of)


def batch_maker(
    config: TrainConfig,
    cases: Cases,
    arrays: list[Arrays],
    workdir: Path,
    components: Components,
) -> Callable[[int, list[batches.BatchRow]], batches.Batch]:
    """(step, rows) -> these rows of the stage's batch."""
    if config.stage == "ctvit":
        return lambda step, rows: batches.volume_batch(arrays, rows)
    reports = partial(vocabulary_reports, cases)
    encode_text, seed = text_encoding(config, reports, workdir, components), config.loop.seed
    if config.stage == "maskgit":
        copies = list(zip(arrays, cases.sources, strict=True))
        return partial(batches.token_batch, copies, encode_text, seed)
    if config.stage == "superres":
        low, high = arrays
        return partial(batches.slice_batch, cases.sources[0], low, high, encode_text, seed)
    return partial(batches.report_batch, cases.sources[0], encode_text, seed)


def _shard_data(
    config: TrainConfig,
    shards: "Shards",
    workdir: Path,
    components: Components,
    own_rows: OwnRows,
) -> StageData:
    from launch.shard_data import ShardBatches, reports

    encode = None
    if config.stage != "ctvit":
        encode = text_encoding(config, partial(reports, shards), workdir, components)
    made = ShardBatches(config, shards, encode, own_rows)
    return StageData(made.training, made.held_out(), made.shown(SHOWN_ROWS), made.cases_of)


def text_encoding(
    config: TrainConfig,
    reports: Callable[[], Iterator[str]],
    workdir: Path,
    components: Components,
) -> Callable[[list[str]], np.ndarray]:
    """Texts -> int32 ids, with the earlier stage's vocabulary or one of `reports`.

    Every process knows the vocabulary itself; the first one writes it to the run's folder.
    """
    t5 = config.model.t5
    assert t5 is not None  # see check_data
    path = workdir / "tokenizer.model"
    model = components.tokenizer
    if model is None and path.exists():
        model = path.read_bytes()
    if model is None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            train_vocabulary(reports(), made, t5.vocab_size)
            model = made.read_bytes()
    if jax.process_index() == 0 and (not path.exists() or path.read_bytes() != model):
        with replace_when_done(path) as temporary:
            temporary.write_bytes(model)
    return partial(Tokenizer(model).encode_batch, max_length=t5.max_length)


def vocabulary_reports(cases: Cases) -> Iterator[str]:
    """Reports to make a vocabulary of: of the training cases again and again, in new wordings."""
    for number in range(VOCABULARY_REPORTS):
        epoch, position = divmod(number, len(cases.training))
        yield batches.report(cases.sources[0], cases.training[position], 0, epoch)
