"""Endless batches of a source's cases for the training stages.

Batch s of a run is a function of (seed, s) alone, so a resumed run continues its data by knowing
its step, and a row's draws one of (seed, s, row), so each process makes the rows that it holds. An
epoch over n cases has n div batch batches, which take the entries of its permutation in turn: no
batch holds a case twice, and what fills no batch is left out until the next epoch.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.shards import Arrays
from data_pipelines.source import Source
from gct_jax.volumes.intensity import to_unit

EncodeText = Callable[[list[str]], np.ndarray]
Batch = dict[str, np.ndarray]


class BatchRow(NamedTuple):
    """A row of a global batch.

    number: its place in the batch. case: of the source. copy: which of the case's rows, the patient
    or a counterfactual.
    """

    number: int
    case: int
    copy: int = 0


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_cases(seed: int, step: int, batch_size: int, cases: int) -> list[int]:
    """Case numbers in [0, cases) of the global batch `step`."""
    epoch, place = divmod(step, cases // batch_size)
    first = place * batch_size
    return _permutation(seed, epoch, cases)[first : first + batch_size].tolist()


def rows_of(cases: Sequence[int], numbers: Sequence[int], copies: int = 1) -> list[BatchRow]:
    """The rows `numbers` of the global batch of `cases`, each of which gives `copies` rows that
    follow each other."""
    return [BatchRow(number, cases[number // copies], number % copies) for number in numbers]


def unit_intensity(volume_hu: np.ndarray) -> np.ndarray:
    """HU as the models see it: float32 in [-1, 1], with a channel axis."""
    return to_unit(volume_hu)[..., None]


def stream(
    make_batch: Callable[[int, list[int]], Batch],
    start: int,
    seed: int,
    batch_size: int,
    cases: int,
) -> Iterator[Batch]:
    """make_batch(step, case numbers of the global batch) for step = start, start + 1, ..."""
    step = start
    while True:
        yield make_batch(step, batch_cases(seed, step, batch_size, cases))
        step += 1


def volume_batch(volumes: Sequence[Arrays], rows: Sequence[BatchRow]) -> Batch:
    """{'volume': float32 [b, d, h, w, 1]} from functions case -> HU [d, h, w], one for each copy of
    a case."""
    return {"volume": np.stack([unit_intensity(volumes[row.copy](row.case)) for row in rows])}


def token_batch(
    sources: Sequence[tuple[Arrays, Source]],
    encode_text: EncodeText,
    seed: int,
    step: int,
    rows: Sequence[BatchRow],
) -> Batch:
    """{'token_ids': int32 [b, t, h, w], 'text_ids': int32 [b, l]}; a new wording each time.

    sources: a function case -> tokens and the source of its report, for each copy of a case.
    """
    tokens = [sources[row.copy][0](row.case) for row in rows]
    reports = [report(sources[row.copy][1], row.case, seed, step) for row in rows]
    return {"token_ids": np.stack(tokens).astype(np.int32), "text_ids": encode_text(reports)}


def slice_batch(
    source: Source,
    low: Arrays,
    high: Arrays,
    encode_text: EncodeText,
    seed: int,
    step: int,
    rows: Sequence[BatchRow],
) -> Batch:
    """A prepared slice of each case, drawn by seed, step and row: {'low_res' [b, h, w, 1],
    'high_res' [b, H, W, 1] float32 in [-1, 1], 'text_ids' int32 [b, l]}."""
    picked = [
        (row.case, np.random.default_rng([seed, step, row.number]).integers(len(low(row.case))))
        for row in rows
    ]
    return {
        "low_res": np.stack([unit_intensity(low(case)[i]) for case, i in picked]),
        "high_res": np.stack([unit_intensity(high(case)[i]) for case, i in picked]),
        "text_ids": encode_text([report(source, row.case, seed, step) for row in rows]),
    }


def report_batch(
    source: Source, encode_text: EncodeText, seed: int, step: int, rows: Sequence[BatchRow]
) -> Batch:
    """{'text_ids': int32 [b, l], 'attributes': int32 [b, a] of the source}."""
    texts = [report(source, row.case, seed, step) for row in rows]
    attributes = [source.attributes(row.case, text) for row, text in zip(rows, texts, strict=True)]
    known = [found for found in attributes if found is not None]
    return {"text_ids": encode_text(texts), "attributes": np.stack(known)}


def report(source: Source, case: int, seed: int, step: int) -> str:
    """A report of a case in a wording drawn for this step."""
    return source.report(case, np.random.default_rng([case, seed, step]))
