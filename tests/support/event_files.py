"""What a run wrote for TensorBoard, read back."""

import io
import struct

from tensorboardX.proto.event_pb2 import Event


def events_in(directory):
    """(step, value) of every summary in the event files in and under a directory, in their order."""
    found = []
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        content, place = file.read_bytes(), 0
        while place < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            place += 16 + length
    return found


def steps_by_tag(directory, kind):
    """For each tag of a kind ("simple_value", "audio" or "image"), the steps that have a value."""
    steps = {}
    for step, value in events_in(directory):
        if value.HasField(kind):
            steps.setdefault(value.tag, []).append(step)
    return steps


def sound_of(value):
    """The samples of an audio summary, (channel, sample), and its rate."""
    import soundfile

    audio, rate = soundfile.read(io.BytesIO(value.audio.encoded_audio_string), always_2d=True)
    return audio.T, rate


def picture_of(value):
    """The pixels of an image summary, (row, column, rgb)."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
