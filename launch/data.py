"""Phantom batches for each stage, prepared once and then read from disk."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines.phantom import batches, pool
from data_pipelines.phantom.case import sample_description, twin_description
from data_pipelines.phantom.grid import Grid
from gct_jax.config import ModelConfig
from gct_jax.errors import ConfigError
from gct_jax.models.ctvit import CTViT
from gct_jax.parts import build_part
from gct_jax.runtime.files import replace_when_done
from gct_jax.text import Tokenizer, train_vocabulary
from gct_jax.training.config import TrainConfig
from gct_jax.training.stages import Parts

VOCABULARY_REPORTS = 10000


class PhantomData(NamedTuple):
    """What the loop needs: `batches(start_step)` and the batches held out for evaluation."""

    batches: Callable[[int], Iterator[batches.Batch]]
    held_out: list[batches.Batch]


def check_data(config: TrainConfig, parts: Parts) -> None:
    """Refuse what `phantom_data` could not make batches from, before it prepares cases for minutes.

    Raises:
      ConfigError: no training case is left, a batch does not hold whole cases, or the stage needs
        a network that no earlier folder holds.
    """
    data, batch_size, stage = config.data, config.loop.batch_size, config.stage
    if data.held_out >= data.cases:
        raise ConfigError(f"data.held_out = {data.held_out} leaves none of {data.cases} cases")
    rows_per_case = len(_sources(config))
    if batch_size % (rows_per_case * jax.process_count()):
        raise ConfigError(
            f"loop.batch_size = {batch_size} is not a multiple of {rows_per_case} rows per "
            f"case x {jax.process_count()} processes"
        )
    held_out_rows = data.held_out * rows_per_case * jax.process_count()
    if held_out_rows < batch_size:
        raise ConfigError(
            f"data.held_out = {data.held_out} cases are fewer than a batch of {batch_size} rows"
        )
    if stage in ("maskgit", "superres") and "ctvit" not in parts.variables:
        raise ConfigError(f"stage {stage} needs CT-ViT: --from the ctvit folder")
    if stage != "ctvit" and config.model.t5 is None:
        raise ConfigError(f"stage {stage} needs model.t5")
    if stage == "superres" and "t5" not in parts.variables:
        raise ConfigError("stage superres needs the text encoder: --from the maskgit folder")


def phantom_data(config: TrainConfig, workdir: Path, parts: Parts) -> PhantomData:
    """Prepare what is missing in `data.folder` (default: `workdir/data`) and open it, for what
    `check_data` accepts."""
    data, loop = config.data, config.loop
    training_cases = data.cases - data.held_out
    rows_per_case = len(_sources(config))
    batch_cases = loop.batch_size // (rows_per_case * jax.process_count())
    make_batch = MAKERS[config.stage](config, _folder(config, workdir), workdir, parts)

    def stream(start: int) -> Iterator[batches.Batch]:
        process = (jax.process_index(), jax.process_count())
        return batches.stream(
            make_batch, start, loop.seed, loop.batch_size // rows_per_case, training_cases, process
        )

    groups = range(training_cases, data.cases - batch_cases + 1, batch_cases)
    held_out = [make_batch(0, list(range(first, first + batch_cases))) for first in groups]
    return PhantomData(stream, held_out)


def _folder(config: TrainConfig, workdir: Path) -> Path:
    """Where prepared cases lie."""
    return Path(config.data.folder) if config.data.folder else workdir / "data"


def _sources(config: TrainConfig) -> tuple[bool, ...]:
    """The rows that a case gives, False for the patient and True for the twin."""
    options = {"ctvit": config.ctvit.twins, "maskgit": config.maskgit.twins}
    return (False, True) if options.get(config.stage) else (False,)


def _low_grid(model: ModelConfig) -> Grid:
    volume = model.volume
    size, spacing = volume.image_size, (volume.slice_spacing_mm, volume.pixel_spacing_mm)
    return Grid(volume.slices, size, size, *spacing)


def _high_grid(model: ModelConfig) -> Grid:
    low = _low_grid(model)
    assert model.diffusion is not None  # check_parts_fit: a model with a U-Net has it
    size = model.diffusion.image_size
    return Grid(
        low.depth, size, size, low.slice_spacing_mm, low.pixel_spacing_mm * low.width / size
    )


def _volumes(config: TrainConfig, folder: Path, twins: bool = False) -> batches.Arrays:
    """The low-resolution volumes: prepared files, or rendered anew each time."""
    grid = _low_grid(config.model)
    render = pool.renderer(grid, twin_description if twins else sample_description)
    if not config.data.prepare:
        return render
    name = f"{'twins' if twins else 'volumes'}-{grid.depth}x{grid.height}"
    pool.prepare(folder, (name,), config.data.cases, lambda case: (render(case),))
    return pool.Shards(folder, name)


def _ctvit_batches(config: TrainConfig, folder: Path, workdir: Path, parts: Parts) -> Callable:
    sources = [_volumes(config, folder, twins) for twins in _sources(config)]
    return lambda step, cases: batches.volume_batch(sources, cases)


def first_volumes(config: TrainConfig, workdir: Path, count: int) -> np.ndarray:
    """Training cases 0 ... `count` - 1, the same on every host: float32 [count, d, h, w, 1] in
    [-1, 1]."""
    source = _volumes(config, _folder(config, workdir))
    return batches.volume_batch([source], list(range(count)))["volume"]


def _maskgit_batches(config: TrainConfig, folder: Path, workdir: Path, parts: Parts) -> Callable:
    ctvit, variables, tag = _tokenizer_network(config, parts)
    dtype = smallest_id_type(ctvit.codebook_size)
    encode = jax.jit(lambda volume: ctvit.apply(variables, volume, method=CTViT.encode)[0])

    def source(twins: bool) -> tuple[batches.Arrays, batches.Describe]:
        volumes = _volumes(config, folder, twins)

        def tokens(case: int) -> tuple[jax.Array]:
            volume = batches.unit_intensity(volumes(case))[None]
            return (encode(volume).astype(dtype),)

        name = f"{'twin-tokens' if twins else 'tokens'}-{tag}"
        pool.prepare(folder, (name,), config.data.cases, tokens)
        return pool.Shards(folder, name), twin_description if twins else sample_description

    sources = [source(twins) for twins in _sources(config)]
    encode_text = _text_encoding(config, workdir, parts)
    return partial(batches.token_batch, sources, encode_text, config.loop.seed)


def _superres_batches(config: TrainConfig, folder: Path, workdir: Path, parts: Parts) -> Callable:
    ctvit, variables, tag = _tokenizer_network(config, parts)
    rebuild = jax.jit(lambda volume: ctvit.apply(variables, volume).reconstruction[0, ..., 0])
    low_volumes = _volumes(config, folder)
    high_render = pool.renderer(_high_grid(config.model), sample_description)
    names = (f"low-{tag}", f"high-{tag}")

    def slices(case: int) -> tuple[np.ndarray, jax.Array]:
        kept = np.random.default_rng(case).permutation(config.model.volume.slices)
        kept = kept[: config.data.slices_per_case]
        low = np.asarray(rebuild(batches.unit_intensity(low_volumes(case))[None]))
        low_hu = np.round(1000 * low.clip(-1, 1)).astype(np.int16)
        return low_hu[kept], high_render(case)[kept]

    pool.prepare(folder, names, config.data.cases, slices)
    low, high = (pool.Shards(folder, name) for name in names)
    encode_text = _text_encoding(config, workdir, parts)
    return partial(batches.slice_batch, low, high, encode_text, config.loop.seed)


def _t5_batches(config: TrainConfig, folder: Path, workdir: Path, parts: Parts) -> Callable:
    encode_text = _text_encoding(config, workdir, parts)
    return partial(batches.report_batch, encode_text, config.loop.seed)


MAKERS = {
    "ctvit": _ctvit_batches,
    "t5": _t5_batches,
    "maskgit": _maskgit_batches,
    "superres": _superres_batches,
}


def smallest_id_type(codes: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the ids 0 ... `codes` - 1."""
    return next(t for t in (np.uint8, np.uint16, np.uint32) if codes - 1 <= np.iinfo(t).max)


def _tokenizer_network(config: TrainConfig, parts: Parts) -> tuple[Any, dict, str]:
    """CT-ViT, its variables, and a tag of its weights that names what was made with it."""
    variables = parts.variables["ctvit"]
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return build_part(config.model, "ctvit"), variables, digest.hexdigest()[:8]


def _text_encoding(config: TrainConfig, workdir: Path, parts: Parts) -> Callable:
    """Texts -> int32 ids, with the earlier stage's vocabulary or one made of phantom reports."""
    t5 = config.model.t5
    assert t5 is not None  # see check_data
    path = workdir / "tokenizer.model"
    if parts.tokenizer is not None:
        if not path.exists() or path.read_bytes() != parts.tokenizer:
            with replace_when_done(path) as temporary:
                temporary.write_bytes(parts.tokenizer)
    elif not path.exists():
        reports = (batches.report(case, 0, 0) for case in range(VOCABULARY_REPORTS))
        with replace_when_done(path) as temporary:
            train_vocabulary(reports, temporary, t5.vocab_size)
    return partial(Tokenizer.load(path).encode_batch, max_length=t5.max_length)
