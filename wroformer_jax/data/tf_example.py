"""Packs and unpacks `tf.train.Example`, the protocol buffer that each record of a TFDS dataset is, without TensorFlow.

An example maps names to lists of bytes, floats or integers. Here each list has one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pack(fields: Mapping[str, bytes | str | int | float]) -> bytes:
    """Serialises an example: text as UTF-8, integers as int64, floats as float32."""
    example = _example_class()()
    for name, value in fields.items():
        feature = example.features.feature[name]
        if isinstance(value, float):
            feature.float_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return example.SerializeToString(deterministic=True)


def unpack(record: bytes) -> dict[str, Any]:
    """Returns the fields of a serialised example as bytes, int or float; text stays bytes.

    Raises:
      ValueError: the bytes are not an example, or a field of it does not have exactly one value.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _example_class().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError("not an example") from error
    fields = {}
    for name, feature in features.items():
        values = getattr(feature, feature.WhichOneof("kind") or "bytes_list").value
        if len(values) != 1:
            raise ValueError(f"an example with {len(values)} values of {name}")
        fields[name] = values[0]
    return fields


def _example_class() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2  # takes 0.2 s; it does not import TensorFlow

    generated: Any = tf_example_pb2  # its classes are made when it is imported, so type checkers do not see them
    return generated.Example
