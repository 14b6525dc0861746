"""What the records of shards hold, for TensorFlow Datasets; of prepared volumes

volume       int16 HU [depth, height, width], packed by Zstandard
spacing_mm   float32 [3], along the same axes
report       the line that networks read, "" without one
labels       int8 [18] in CT-RATE's order, -1 where not known
age_years    float32, NaN if not known;  sex "male", "female" or ""
case, patient, scan    names, or pseudonyms of them
placement    JSON of `gct_jax.volumes.placement.Placement`
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.labels import LABELS
from data_pipelines.prepared_case import pack, volume_bytes
from data_pipelines.records import load_tensorflow
from data_pipelines.shards import smallest_id_type

tf = load_tensorflow()


class ZstdVolume(tfds.features.FeatureConnector):
    """An int16 volume of any shape, packed by Zstandard; TensorFlow unpacks it in its graph."""

    def get_tensor_info(self) -> Any:
        """[depth, height, width]."""
        return tfds.features.TensorInfo(shape=(None, None, None), dtype=np.int16)

    def get_serialized_info(self) -> Any:
        """The packed bytes and the shape."""
        return {
            "packed": tfds.features.TensorInfo(shape=(), dtype=np.object_),
            "shape": tfds.features.TensorInfo(shape=(3,), dtype=np.int64),
        }

    def encode_example(self, example_data: Any) -> Any:
        """From `(packed, shape)`, or from an array."""
        if isinstance(example_data, tuple):
            packed, shape = example_data
        else:
            packed, shape = pack(volume_bytes(example_data)), example_data.shape
        return {"packed": packed, "shape": np.array(shape, np.int64)}

    def decode_example(self, tfexample_data: Any) -> Any:
        """Packed bytes and shape -> int16 [depth, height, width]."""
        content = tf.io.decode_compressed(tfexample_data["packed"], "ZSTD")
        return tf.reshape(tf.io.decode_raw(content, tf.int16), tfexample_data["shape"])

    def to_json_content(self) -> Any:
        """It has no options."""
        return {}

    @classmethod
    def from_json_content(cls, value: Any) -> "ZstdVolume":
        """It has no options."""
        del value
        return cls()


def volume_features() -> Any:
    """Of a record of volumes; see the module's first lines."""
    return _features(
        volume=ZstdVolume(),
        spacing_mm=tfds.features.Tensor(shape=(3,), dtype=np.float32),
        labels=tfds.features.Tensor(shape=(len(LABELS),), dtype=np.int8),
        age_years=tfds.features.Scalar(np.float32),
        texts=("report", "sex", "case", "patient", "scan", "placement"),
    )


def token_features(text_width: int, codes: int) -> Any:
    """Of a record of tokens: `ids` [t, h, w] below `codes`, the report and, unless `text_width` is
    0, its embedding `text` float32 [tokens, text_width]."""
    bytes_of = tfds.features.Encoding.BYTES
    more = {}
    if text_width:
        more["text"] = tfds.features.Tensor(
            shape=(None, text_width), dtype=np.float32, encoding=bytes_of
        )
    return _features(
        ids=tfds.features.Tensor(shape=(None, None, None), dtype=id_type(codes), encoding=bytes_of),
        texts=("report", "case", "patient"),
        **more,
    )


def id_type(codes: int) -> Any:
    """The smallest type that holds the ids 0 ... `codes` - 1 and that tf.data reads."""
    smallest = smallest_id_type(codes)
    return np.int32 if smallest is np.uint32 else smallest


def pair_features() -> Any:
    """Of a record of one slice: as CT-ViT rebuilds it, `low` int16 HU [1, h, w], and `high` [1, H,
    W] at full resolution."""
    return _features(low=ZstdVolume(), high=ZstdVolume(), texts=("report", "case", "patient"))


def _features(texts: tuple[str, ...], **others: Any) -> Any:
    named = {name: tfds.features.Text() for name in texts}
    return tfds.features.FeaturesDict({**others, **named})


def serialize(features: Any, example: dict[str, Any]) -> bytes:
    """The bytes of an example, the same every time: TFDS leaves the order of fields to chance."""
    message = tf.train.Example.FromString(features.serialize_example(example))
    content: bytes = message.SerializeToString(deterministic=True)
    return content
