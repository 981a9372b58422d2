"""Packed examples equal those of TFDS."""

import math

import numpy as np
import pytest

from wroformer_jax.data.tf_example import pack, unpack


def tfds_example(features, values):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(features)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    return serializer.serialize_example(features.encode_example(values))


def test_are_read_as_they_were_packed():
    fields = {"text": "ü", "bytes": b"\xff\0", "int": -(2**40), "float": -math.inf, "half": 0.5}
    assert unpack(pack(fields)) == {**fields, "text": "ü".encode()}


def test_are_those_of_tfds():
    import tensorflow_datasets as tfds

    fields = {"text": "ü", "int": 7, "float": 0.5}
    record = tfds_example({"text": tfds.features.Text(), "int": np.int64, "float": np.float32}, fields)
    assert unpack(record) == {**fields, "text": "ü".encode()}
    assert len(pack(fields)) == len(record)


def test_what_is_none():
    for record in (b"\xff\xff", pack({"a": 1})[:-3]):
        with pytest.raises(ValueError, match="not an example"):
            unpack(record)


def test_lists_of_several_values_are_not_ours():
    import tensorflow_datasets as tfds

    record = tfds_example({"a": tfds.features.Tensor(shape=(2,), dtype=np.int64)}, {"a": [1, 2]})
    with pytest.raises(ValueError, match="2 values of a"):
        unpack(record)
