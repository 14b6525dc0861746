"""A source's batches for each stage, prepared once and then read from disk."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines import batches, shards
from data_pipelines.source import HELD_OUT, TRAINING, Source, open_source
from gct_jax.components import build_component
from gct_jax.config import ModelConfig
from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done
from gct_jax.text import Tokenizer, train_vocabulary
from gct_jax.training.config import TrainConfig
from gct_jax.training.stages import Components
from gct_jax.volumes.grid import Grid

VOCABULARY_REPORTS = 10000


class StageData(NamedTuple):
    """What the loop needs: `batches(start_step)` and the batches held out for evaluation."""

    batches: Callable[[int], Iterator[batches.Batch]]
    held_out: list[batches.Batch]


def check_data(config: TrainConfig, components: Components) -> None:
    """Refuse what `stage_data` could not make batches from, before it prepares cases for minutes.

    Raises:
      ConfigError: no such source, it lacks what the stage needs, no training case is left, a batch
        does not hold whole cases, or the stage needs a network that no earlier folder holds.
    """
    batch_size, stage = config.loop.batch_size, config.stage
    sources = _sources(config)
    rows_per_case, (training, held_out) = len(sources), split_cases(sources[0])
    if not training:
        raise ConfigError(f"data.source {config.data.source} has no training cases")
    if batch_size % (rows_per_case * jax.process_count()):
        raise ConfigError(
            f"loop.batch_size = {batch_size} is not a multiple of {rows_per_case} rows per "
            f"case x {jax.process_count()} processes"
        )
    if len(held_out) * rows_per_case * jax.process_count() < batch_size:
        raise ConfigError(
            f"data.held_out = {len(held_out)} cases are fewer than a batch of {batch_size} rows"
        )
    if stage in ("maskgit", "superres") and "ctvit" not in components.variables:
        raise ConfigError(f"stage {stage} needs CT-ViT: --from the ctvit folder")
    if stage != "ctvit" and config.model.t5 is None:
        raise ConfigError(f"stage {stage} needs model.t5")
    if stage == "superres" and "t5" not in components.variables:
        raise ConfigError("stage superres needs the text encoder: --from the maskgit folder")
    if stage == "t5":
        check_attributes(config, sources[0])


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


def stage_data(config: TrainConfig, workdir: Path, components: Components) -> StageData:
    """Prepare what is missing in `data.folder` (default: `workdir/data`) and open it, for what
    `check_data` accepts."""
    loop, sources = config.loop, _sources(config)
    training, held_out = split_cases(sources[0])
    together = loop.batch_size // len(sources)  # cases of a global batch
    here = together // jax.process_count()
    make_batch = MAKERS[config.stage](config, _folder(config, workdir), workdir, components)

    def training_batch(step: int, positions: list[int]) -> batches.Batch:
        return make_batch(step, [training[position] for position in positions])

    def stream(start: int) -> Iterator[batches.Batch]:
        process = (jax.process_index(), jax.process_count())
        return batches.stream(training_batch, start, loop.seed, together, len(training), process)

    groups = range(0, len(held_out) - here + 1, here)
    return StageData(stream, [make_batch(0, held_out[first : first + here]) for first in groups])


def split_cases(source: Source) -> tuple[list[int], list[int]]:
    """The cases for training and those held out."""
    splits = [source.split(case) for case in range(source.cases)]
    training, held_out = (
        [case for case, split in enumerate(splits) if split == wanted]
        for wanted in (TRAINING, HELD_OUT)
    )
    return training, held_out


def _folder(config: TrainConfig, workdir: Path) -> Path:
    """Where prepared cases lie."""
    return Path(config.data.folder) if config.data.folder else workdir / "data"


def _sources(config: TrainConfig) -> list[Source]:
    """The sources of a case's rows: the patient and, if the stage wants it, the counterfactual.

    Raises:
      ConfigError: no such source, or one without counterfactuals.
    """
    source = open_source(config.data)
    if not getattr(getattr(config, config.stage), "counterfactual_pairs", False):
        return [source]
    other = source.counterfactual()
    if other is None:
        raise ConfigError(
            f"{config.stage}.counterfactual_pairs needs the same patients with other findings, "
            f"which data.source {config.data.source} does not have"
        )
    return [source, other]


def _low_grid(model: ModelConfig) -> Grid:
    volume, size = model.volume, model.volume.image_size
    pixel_mm = volume.pixel_spacing_mm
    return Grid.centred((volume.slices, size, size), (volume.slice_spacing_mm, pixel_mm, pixel_mm))


def _high_grid(model: ModelConfig) -> Grid:
    low = _low_grid(model)
    assert model.diffusion is not None  # check_components_fit: a model with a U-Net has it
    size = model.diffusion.image_size
    pixel_mm = model.volume.pixel_spacing_mm * model.volume.image_size / size
    return low.regrid((low.shape[0], size, size), (low.spacing_mm[0], pixel_mm, pixel_mm))


def _volumes(
    config: TrainConfig, folder: Path, source: Source, name: str = "volumes"
) -> batches.Arrays:
    """The low-resolution volumes: prepared files, or made anew each time."""
    grid = _low_grid(config.model)

    def make(case: int) -> Any:
        return source.volume_hu(case, grid)

    if not config.data.prepare:
        return make
    name = f"{name}-{grid.shape[0]}x{grid.shape[1]}"
    shards.prepare(folder, (name,), source.cases, lambda case: (make(case),))
    return shards.Shards(folder, name)


def _all_volumes(config: TrainConfig, folder: Path) -> list[batches.Arrays]:
    names = ("volumes", "counterfactual-volumes")
    return [
        _volumes(config, folder, source, name)
        for source, name in zip(_sources(config), names, strict=False)
    ]


def _ctvit_batches(
    config: TrainConfig, folder: Path, workdir: Path, components: Components
) -> Callable:
    volumes = _all_volumes(config, folder)
    return lambda step, cases: batches.volume_batch(volumes, cases)


def _maskgit_batches(
    config: TrainConfig, folder: Path, workdir: Path, components: Components
) -> Callable:
    ctvit, variables, tag = _tokenizer_network(config, components)
    dtype = smallest_id_type(ctvit.codebook_size)
    encode = jax.jit(lambda volume: ctvit.apply(variables, volume, method="encode")[0])

    def tokens(source: Source, volumes: batches.Arrays, name: str) -> batches.Arrays:
        def make(case: int) -> tuple[jax.Array]:
            volume = batches.unit_intensity(volumes(case))[None]
            return (encode(volume).astype(dtype),)

        name = f"{name}-{tag}"
        shards.prepare(folder, (name,), source.cases, make)
        return shards.Shards(folder, name)

    names = ("tokens", "counterfactual-tokens")
    rows = zip(_sources(config), _all_volumes(config, folder), names, strict=False)
    sources = [(tokens(source, volumes, name), source) for source, volumes, name in rows]
    encode_text = _text_encoding(config, workdir, components)
    return partial(batches.token_batch, sources, encode_text, config.loop.seed)


def _superres_batches(
    config: TrainConfig, folder: Path, workdir: Path, components: Components
) -> Callable:
    ctvit, variables, tag = _tokenizer_network(config, components)
    rebuild = jax.jit(lambda volume: ctvit.apply(variables, volume).reconstruction[0, ..., 0])
    (source,) = _sources(config)
    low_volumes, high_grid = _volumes(config, folder, source), _high_grid(config.model)
    names = (f"low-{tag}", f"high-{tag}")

    def slices(case: int) -> tuple[np.ndarray, jax.Array]:
        kept = np.random.default_rng(case).permutation(config.model.volume.slices)
        kept = kept[: config.data.slices_per_case]
        low = np.asarray(rebuild(batches.unit_intensity(low_volumes(case))[None]))
        low_hu = np.round(1000 * low.clip(-1, 1)).astype(np.int16)
        return low_hu[kept], source.volume_hu(case, high_grid)[kept]

    shards.prepare(folder, names, source.cases, slices)
    low, high = (shards.Shards(folder, name) for name in names)
    encode_text = _text_encoding(config, workdir, components)
    return partial(batches.slice_batch, source, low, high, encode_text, config.loop.seed)


def _t5_batches(
    config: TrainConfig, folder: Path, workdir: Path, components: Components
) -> Callable:
    encode_text = _text_encoding(config, workdir, components)
    (source,) = _sources(config)
    return partial(batches.report_batch, source, encode_text, config.loop.seed)


MAKERS = {
    "ctvit": _ctvit_batches,
    "t5": _t5_batches,
    "maskgit": _maskgit_batches,
    "superres": _superres_batches,
}


def smallest_id_type(codes: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the ids 0 ... `codes` - 1."""
    return next(t for t in (np.uint8, np.uint16, np.uint32) if codes - 1 <= np.iinfo(t).max)


def _tokenizer_network(config: TrainConfig, components: Components) -> tuple[Any, dict, str]:
    """CT-ViT, its variables, and a tag of its weights that names what was made with it."""
    variables = components.variables["ctvit"]
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return build_component(config.model, "ctvit"), variables, digest.hexdigest()[:8]


def _text_encoding(config: TrainConfig, workdir: Path, components: Components) -> Callable:
    """Texts -> int32 ids, with the earlier stage's vocabulary or one of the source's reports."""
    t5 = config.model.t5
    assert t5 is not None  # see check_data
    path = workdir / "tokenizer.model"
    if components.tokenizer is not None:
        if not path.exists() or path.read_bytes() != components.tokenizer:
            with replace_when_done(path) as temporary:
                temporary.write_bytes(components.tokenizer)
    elif not path.exists():
        reports = vocabulary_reports(open_source(config.data))
        with replace_when_done(path) as temporary:
            train_vocabulary(reports, temporary, t5.vocab_size)
    return partial(Tokenizer.load(path).encode_batch, max_length=t5.max_length)


def vocabulary_reports(source: Source) -> Iterator[str]:
    """Reports to make a vocabulary of: of the training cases again and again, in new wordings."""
    training, _ = split_cases(source)
    for number in range(VOCABULARY_REPORTS):
        epoch, position = divmod(number, len(training))
        yield batches.report(source, training[position], 0, epoch)
