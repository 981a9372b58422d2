"""Reads the event files that a run writes for TensorBoard."""

import io
import struct

from tensorboardX.proto.event_pb2 import Event


def events_in(directory):
    """Returns (step, value) of every summary in the event files below a directory, in file order."""
    found = []
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        content, offset = file.read_bytes(), 0
        while offset < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, offset)
            event = Event.FromString(content[offset + 12 : offset + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            offset += 16 + length
    return found


def steps_by_tag(directory, kind):
    """Returns the steps that have a value, by tag, of one kind ("simple_value", "audio" or "image")."""
    steps = {}
    for step, value in events_in(directory):
        if value.HasField(kind):
            steps.setdefault(value.tag, []).append(step)
    return steps


def sound_of(value):
    """Returns the samples of an audio summary, (channel, sample), and their rate in Hz."""
    import soundfile

    audio, rate = soundfile.read(io.BytesIO(value.audio.encoded_audio_string), always_2d=True)
    return audio.T, rate


def picture_of(value):
    """Returns the pixels of an image summary, (row, column, rgb)."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
