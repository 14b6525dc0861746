"""Endless batches of a source's cases for the training stages.

Batch s of a run is a function of (seed, s) alone, so a resumed run continues its data by knowing
its step. An epoch over n cases has n div batch batches, which take the entries of its permutation
in turn: no batch holds a case twice, and what fills no batch is left out until the next epoch.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines.shards import Arrays
from data_pipelines.source import Source
from gct_jax.volumes.intensity import to_unit

EncodeText = Callable[[list[str]], np.ndarray]
Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_cases(
    seed: int, step: int, batch_size: int, cases: int, process: tuple[int, int] = (0, 1)
) -> list[int]:
    """Case numbers in [0, cases) of this process's share of batch `step`.

    `process` is (index, count); the global batch does not depend on it.
    """
    index, count = process
    local = batch_size // count
    epoch, place = divmod(step, cases // batch_size)
    first = place * batch_size + index * local
    return _permutation(seed, epoch, cases)[first : first + local].tolist()


def unit_intensity(volume_hu: np.ndarray) -> np.ndarray:
    """HU as the models see it: float32 in [-1, 1], with a channel axis."""
    return to_unit(volume_hu)[..., None]


def stream(
    make_batch: Callable[[int, list[int]], Batch],
    start: int,
    seed: int,
    batch_size: int,
    cases: int,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """make_batch(step, case numbers) for step = start, start + 1, ..."""
    step = start
    while True:
        yield make_batch(step, batch_cases(seed, step, batch_size, cases, process))
        step += 1


def volume_batch(volumes: Sequence[Arrays], cases: list[int]) -> Batch:
    """{'volume': float32 [b, d, h, w, 1]} from functions case -> HU [d, h, w], a row for each."""
    rows = [unit_intensity(of(case)) for case in cases for of in volumes]
    return {"volume": np.stack(rows)}


def token_batch(
    sources: Sequence[tuple[Arrays, Source]],
    encode_text: EncodeText,
    seed: int,
    step: int,
    cases: list[int],
) -> Batch:
    """{'token_ids': int32 [b, t, h, w], 'text_ids': int32 [b, l]}; a new wording each time.

    Each case gives one row per pair of a function case -> tokens and the source of its report.
    """
    rows = [(case, *pair) for case in cases for pair in sources]
    return {
        "token_ids": np.stack([tokens(case) for case, tokens, _ in rows]).astype(np.int32),
        "text_ids": encode_text([report(source, case, seed, step) for case, _, source in rows]),
    }


def slice_batch(
    source: Source,
    low: Arrays,
    high: Arrays,
    encode_text: EncodeText,
    seed: int,
    step: int,
    cases: list[int],
) -> Batch:
    """One random prepared slice of each case: {'low_res' [b, h, w, 1], 'high_res' [b, H, W, 1]
    float32 in [-1, 1], 'text_ids' int32 [b, l]}."""
    rng = np.random.default_rng([seed, step])
    picked = [(case, rng.integers(len(low(case)))) for case in cases]
    return {
        "low_res": np.stack([unit_intensity(low(case)[i]) for case, i in picked]),
        "high_res": np.stack([unit_intensity(high(case)[i]) for case, i in picked]),
        "text_ids": encode_text([report(source, case, seed, step) for case in cases]),
    }


def report_batch(
    source: Source, encode_text: EncodeText, seed: int, step: int, cases: list[int]
) -> Batch:
    """{'text_ids': int32 [b, l], 'attributes': int32 [b, a] of the source}."""
    texts = [report(source, case, seed, step) for case in cases]
    attributes = [source.attributes(case, text) for case, text in zip(cases, texts, strict=True)]
    known = [found for found in attributes if found is not None]
    return {"text_ids": encode_text(texts), "attributes": np.stack(known)}


def report(source: Source, case: int, seed: int, step: int) -> str:
    """A report of a case in a wording drawn for this step."""
    return source.report(case, np.random.default_rng([case, seed, step]))
