"""Batches streamed from shards by tf.data.

    step -> rows of the batch (`batch_plan`) -> records -> unpacked, padded -> batch

Everything after `batch_plan` is a function of the rows, so a run continues its data by knowing its
step, and every host makes the rows that it is asked for of the same global batch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import features as record_features
from data_pipelines.batch_plan import Row
from data_pipelines.features import tf
from data_pipelines.shard_reader import RecordReader
from gct_jax.errors import GctError, InputError
from gct_jax.volumes.placement import HIGHEST_HU, LOWEST_HU

Batch = dict[str, np.ndarray]
Example = dict[str, Any]
# (a record as tensors, the depth to pad to) -> tensors of a row.
MakeRow = Callable[[Example, Any], Example]
AHEAD = 2  # batches
FAR = 1 << 40  # steps


class View:
    """How the records of one kind become rows.

    Args:
      features: of the records.
      make_row: record, depth -> tensors.
      skipped: fields that are not unpacked.
      units: fields in HU that become float32 in [-1, 1], with a channel axis.
    """

    def __init__(
        self,
        features: Any,
        make_row: MakeRow,
        skipped: Sequence[str] = (),
        units: Sequence[str] = (),
    ):
        import tensorflow_datasets as tfds

        self._features, self.make_row, self._units = features, make_row, units
        self._decoders = {name: tfds.decode.SkipDecoding() for name in skipped}

    def row(self, content: Any, depth: Any) -> Example:
        """Bytes of a record -> tensors of a row."""
        example = self._features.deserialize_example(content, decoders=self._decoders)
        return self.make_row(example, depth)

    def batch(self, rows: Example) -> Example:
        """HU of a batch as the networks see them: the values of `to_unit`, clipped while they are
        small."""

        def unit(hu: Any) -> Any:
            clipped = tf.clip_by_value(hu, LOWEST_HU, HIGHEST_HU)
            return (tf.cast(clipped, tf.float32) / 1000.0)[..., None]

        return rows | {name: unit(rows[name]) for name in self._units}


def volume_view(masked: bool) -> View:
    """{'volume' float32 [b, d, h, w, 1] in [-1, 1]} and, if `masked`, 'slice_mask' bool [d]."""

    def make_row(example: Example, depth: Any) -> Example:
        volume = example["volume"]
        real = tf.shape(volume)[0]
        row = {"volume": padded(volume, depth - real, LOWEST_HU)}
        return row | ({"slice_mask": tf.range(depth) < real} if masked else {})

    return View(record_features.volume_features(), make_row, units=("volume",))


def padded(array: Any, more: Any, value: int) -> Any:
    """`more` frames of `value` after those of [t, h, w]; without any, the array itself."""
    return tf.cond(
        more > 0,
        lambda: tf.pad(array, [[0, more], [0, 0], [0, 0]], constant_values=value),
        lambda: array,
    )


def token_view(text_width: int, codes: int, text_length: int, masked: bool, embedded: bool) -> View:
    """{'token_ids' int32 [t, h, w]}, 'token_mask' bool if `masked`, and either 'report' or, if
    `embedded`, 'text' float32 [text_length, text_width] and 'text_mask'.

    text_width: of the records' embeddings, 0 if they have none. codes: of the codebook.
    """

    def make_row(example: Example, depth: Any) -> Example:
        ids = tf.cast(example["ids"], tf.int32)
        real, shape = tf.shape(ids)[0], tf.shape(ids)
        row = {"token_ids": padded(ids, depth - real, 0)}
        if masked:
            mask = (tf.range(depth) < real)[:, None, None]
            row["token_mask"] = tf.broadcast_to(mask, [depth, shape[1], shape[2]])
        if not embedded:
            return row | {"report": example["report"]}
        text = example["text"][:text_length]
        read = tf.shape(text)[0]
        row["text"] = tf.pad(text, [[0, text_length - read], [0, 0]])
        row["text_mask"] = tf.range(text_length) < read
        return row

    skipped = ["text"] if text_width and not embedded else []
    return View(record_features.token_features(text_width, codes), make_row, skipped)


def pair_view() -> View:
    """{'low_res' float32 [h, w, 1], 'high_res' [H, W, 1] in [-1, 1], 'report'}."""

    def make_row(example: Example, depth: Any) -> Example:
        del depth
        return {
            "low_res": example["low"][0],
            "high_res": example["high"][0],
            "report": example["report"],
        }

    return View(record_features.pair_features(), make_row, units=("low_res", "high_res"))


def case_view() -> View:
    """{'volume' float32 [d, h, w, 1] in [-1, 1], 'report', 'case', 'patient', 'placement'}: what
    later views are made from."""
    volumes = volume_view(masked=False)

    def make_row(example: Example, depth: Any) -> Example:
        texts = {name: example[name] for name in ("report", "case", "patient", "placement")}
        return {**volumes.make_row(example, depth), **texts}

    return View(record_features.volume_features(), make_row, units=("volume",))


def report_view() -> View:
    """{'report', 'labels' int8 [18], 'case'} of volumes, which stay packed."""

    def make_row(example: Example, depth: Any) -> Example:
        del depth
        return {name: example[name] for name in ("report", "labels", "case")}

    return View(record_features.volume_features(), make_row, skipped=("volume",))


def stream(
    readers: Sequence[RecordReader],
    view: View,
    rows_of: Callable[[int], Sequence[Row]],
    rows: int,
    start: int = 0,
    steps: int = FAR,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Batches of the steps start, start + 1, ... as NumPy arrays by name.

    Args:
      readers: of the folders that rows name.
      rows_of: step -> this host's rows of its batch; `Row.case` numbers a record.
      rows: how many they are.
      steps: how many batches.
      threads: that unpack; None: as many as cores.

    Raises:
      GctError: a shard is damaged or cannot be read; the message names it.
    """
    threads = threads or os.cpu_count() or 1

    def read(step: Any) -> tuple[Any, Any]:
        chosen = rows_of(int(step))
        contents = [readers[row.folder](row.case, row.depth) for row in chosen]
        return np.array(contents, object), np.array([row.depth for row in chosen], np.int32)

    def contents_of(step: Any) -> tuple[Any, Any]:
        contents, depths = tf.numpy_function(read, [step], [tf.string, tf.int32], stateful=False)
        contents.set_shape((rows,))
        depths.set_shape((rows,))
        return contents, depths

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    dataset = (
        tf.data.Dataset.range(start, start + steps)
        .map(contents_of, num_parallel_calls=2, deterministic=True)
        .unbatch()
        .map(view.row, num_parallel_calls=threads, deterministic=True)
        .batch(rows, drop_remainder=True)
        .map(view.batch, num_parallel_calls=2, deterministic=True)
        .prefetch(AHEAD)
        .with_options(options)
    )
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError as error:
        text = str(error.message)
        if f"{InputError.__name__}: " not in text:
            raise GctError(f"reading shards: {' '.join(text.split())[:300]}") from error
        line = text.split(f"{InputError.__name__}: ", 1)[1].splitlines()[0]
        raise InputError(line) from error
