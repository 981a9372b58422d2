"""The protocol buffer `tf.train.Example`, which is what a record of a TFDS dataset is, without TensorFlow.

An example maps names to lists: of bytes, of floats or of integers. Here each list has one value.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

# tensorflow/core/example/example.proto and feature.proto, as a descriptor.
_PROTO = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List" oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED
    type_name: ".tensorflow.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" }
}
"""


def pack(fields: Mapping[str, bytes | str | int | float]) -> bytes:
    """An example of these fields: text as UTF-8, integers as int64, floats as float32."""
    example = _message_class()()
    for name, value in fields.items():
        feature = example.features.feature[name]
        if isinstance(value, float):
            feature.float_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return example.SerializeToString(deterministic=True)


def unpack(record: bytes) -> dict[str, bytes | int | float]:
    """The fields of an example; text stays bytes.

    Raises:
      ValueError: these bytes are no example of one value a field.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _message_class().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError("no example") from error
    fields = {}
    for name, feature in features.items():
        values = getattr(feature, feature.WhichOneof("kind") or "bytes_list").value
        if len(values) != 1:
            raise ValueError(f"an example with {len(values)} values of {name}")
        fields[name] = values[0]
    return fields


@functools.cache
def _message_class() -> Any:
    """The class of examples, in a pool of its own: TensorFlow, if it is imported, has one of the same name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()).SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
