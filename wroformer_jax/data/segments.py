"""Segments: a few seconds of one stem as the bytes of a record, and back; what is measured of them.

Audio is float32 (channel, sample), finite, full scale 1. The encodings of a set are

- lossless: FLAC. Samples that are all 16-bit values, k / 2^15, take 16 bits; others 24 bits, which is exact for
  24-bit values and rounds what is finer by at most half a step of 2^-23, times the scale;
- int16: raw 16-bit integers, little-endian, the channels of a sample side by side;
- float32: raw likewise, exact for whatever comes.

Integers cannot hold what exceeds full scale. Such a segment is divided by its scale, the smallest power of two that
brings it into their range, so that nothing is ever clipped.
"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from jaxtyping import Float32

ENCODINGS = ("lossless", "int16", "float32")
ACTIVE_DB = -60.0  # dB of full scale: a second whose RMS is above it is active

_FLAC = "flac"
_DECODED_AT_ONCE = 1 << 14  # samples
_RAW = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The audio of a segment as bytes."""

    kind: str  # "flac", "int16" or "float32"
    scale: float  # power of two, at least 1: the samples are the stored ones times it
    data: bytes


def encode(audio: Float32[np.ndarray, "channel sample"], encoding: str, sample_rate: int) -> Encoded:
    """Encodes a segment.

    Args:
      audio: at least one sample; full scale may be exceeded.
      encoding: one of ENCODINGS.
      sample_rate: Hz, for the header of FLAC.
    """
    if encoding == "float32":
        return Encoded(encoding, 1.0, audio.T.astype(_RAW[encoding]).tobytes())
    bits = 24 if encoding == "lossless" and not _is_16_bit(audio) else 16
    scale = _scale(audio, bits)
    integers = np.rint(audio.T * np.float32(2.0 ** (bits - 1) / scale))
    if encoding == "int16":
        return Encoded(encoding, scale, integers.astype(_RAW[encoding]).tobytes())
    return Encoded(_FLAC, scale, _write_flac(integers, bits, sample_rate))


def decode(encoded: Encoded, start: int, out: Float32[np.ndarray, "channel sample"]) -> None:
    """Fills `out` with the samples of a segment from `start` on; of FLAC only the frames that they lie in are decoded.

    Raises:
      ValueError: the bytes are damaged, or fewer samples or other channels than that.
    """
    if encoded.kind == _FLAC:
        _read_flac(encoded, start, out)
        return
    kind = _RAW[encoded.kind]
    channels = len(out)
    samples = np.frombuffer(encoded.data, kind, out.size, start * channels * kind.itemsize).reshape(-1, channels)
    full_scale = 1 if encoded.kind == "float32" else 2**15
    np.multiply(samples.T, np.float32(encoded.scale / full_scale), out=out)


def level_db(audio: Float32[np.ndarray, "channel sample"]) -> float:
    """RMS over channels and samples in dB of full scale; -inf for digital silence and for no samples."""
    # In float64, for float32 would lose the quiet ones among 10^6. No dot product: its threads get in each other's way
    # where several processes write.
    power = float(np.square(audio, dtype=np.float64).sum()) / max(audio.size, 1)
    return 10 * math.log10(power) if power else -math.inf


def active_marks(audio: Float32[np.ndarray, "channel sample"], sample_rate: int) -> str:
    """A character for each second that has begun: "1" where its RMS is above ACTIVE_DB, else "0"."""
    seconds = (audio[:, start : start + sample_rate] for start in range(0, audio.shape[-1], sample_rate))
    return "".join("1" if level_db(second) > ACTIVE_DB else "0" for second in seconds)


def _is_16_bit(audio: Float32[np.ndarray, "channel sample"]) -> bool:
    integers = audio * np.float32(2**15)
    return _scale(audio, 16) == 1 and bool(np.all(integers == np.rint(integers)))


def _scale(audio: Float32[np.ndarray, "channel sample"], bits: int) -> float:
    full_scale = 2.0 ** (bits - 1)
    lowest, highest = float(audio.min()) * full_scale, float(audio.max()) * full_scale
    scale = 1.0
    while round(lowest / scale) < -full_scale or round(highest / scale) > full_scale - 1:
        scale *= 2
    return scale


def _write_flac(integers: Float32[np.ndarray, "sample channel"], bits: int, sample_rate: int) -> bytes:
    import soundfile

    # libsndfile takes 24 bits from the upper part of 32.
    samples = integers.astype(np.int16) if bits == 16 else integers.astype(np.int32) << 8
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="FLAC", subtype=f"PCM_{bits}")
    return file.getvalue()


def _read_flac(encoded: Encoded, start: int, out: Float32[np.ndarray, "channel sample"]) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(encoded.data)) as file:
            if file.channels != len(out) or file.frames < start + out.shape[-1]:
                raise ValueError(f"FLAC of {file.frames} samples of {file.channels} channels is not what is expected")
            file.seek(start)
            # In parts that stay in the processor's cache: new memory for it all takes as long as decoding it.
            buffer = np.empty((_DECODED_AT_ONCE, len(out)), np.float32)
            for place in range(0, out.shape[-1], _DECODED_AT_ONCE):
                part = out[:, place : place + _DECODED_AT_ONCE]
                decoded = file.read(part.shape[-1], always_2d=True, out=buffer[: part.shape[-1]])
                np.multiply(decoded.T, np.float32(encoded.scale), out=part)
    except soundfile.SoundFileError as error:
        raise ValueError("FLAC that cannot be decoded") from error
