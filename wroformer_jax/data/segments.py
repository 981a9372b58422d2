"""Encodes and decodes segments, which are a few seconds of one stem in a record, and measures their level.

Audio is float32 (channel, sample), finite, full scale 1. The encodings of a set are

- lossless: FLAC, with 16 bits if all samples are 16-bit values k / 2^15, else with 24 bits. That is exact for 24-bit
  values; finer ones are rounded by at most half a step of 2^-23, times the scale;
- int16: raw 16-bit integers, little-endian, interleaved channels;
- float32: raw floats, likewise interleaved, which are always exact.

Integers cannot hold samples that exceed full scale. A segment that has some is divided by its scale, the smallest power
of two that brings it into range, so that nothing is clipped.
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
_SAMPLES_PER_READ = 1 << 14
_RAW = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The encoded audio of a segment."""

    kind: str  # "flac", "int16" or "float32"
    scale: float  # a power of two, at least 1, by which stored samples are multiplied
    data: bytes


def encode(audio: Float32[np.ndarray, "channel sample"], encoding: str, sample_rate: int) -> Encoded:
    """Encodes a segment.

    Args:
      audio: at least one sample; may exceed full scale.
      encoding: one of ENCODINGS.
      sample_rate: in Hz, for the header of FLAC.
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
    """Fills `out` with the samples of a segment from `start` on, without decoding the whole segment.

    Raises:
      ValueError: the bytes are damaged, or hold fewer samples or a different number of channels.
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
    """Returns the RMS over channels and samples in dB of full scale; -inf for digital silence or no samples."""
    # In float64, since a float32 sum of 10^6 squares loses the quiet samples. Not as a dot product: the threads of BLAS
    # slow each other down when several processes write.
    power = float(np.square(audio, dtype=np.float64).sum()) / max(audio.size, 1)
    return 10 * math.log10(power) if power else -math.inf


def active_marks(audio: Float32[np.ndarray, "channel sample"], sample_rate: int) -> str:
    """Returns a character for each second, the last one included: "1" if its RMS exceeds ACTIVE_DB, else "0"."""
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

    # libsndfile expects 24-bit samples in the upper bits of 32.
    samples = integers.astype(np.int16) if bits == 16 else integers.astype(np.int32) << 8
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="FLAC", subtype=f"PCM_{bits}")
    return file.getvalue()


def _read_flac(encoded: Encoded, start: int, out: Float32[np.ndarray, "channel sample"]) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(encoded.data)) as file:
            if file.channels != len(out) or file.frames < start + out.shape[-1]:
                raise ValueError(
                    f"FLAC of {file.frames} samples and {file.channels} channels, expected at least "
                    f"{start + out.shape[-1]} samples and {len(out)} channels"
                )
            file.seek(start)
            # In parts that fit into the processor's cache: allocating all of it would take as long as decoding.
            buffer = np.empty((_SAMPLES_PER_READ, len(out)), np.float32)
            for offset in range(0, out.shape[-1], _SAMPLES_PER_READ):
                part = out[:, offset : offset + _SAMPLES_PER_READ]
                decoded = file.read(part.shape[-1], always_2d=True, out=buffer[: part.shape[-1]])
                np.multiply(decoded.T, np.float32(encoded.scale), out=part)
    except soundfile.SoundFileError as error:
        raise ValueError("FLAC that cannot be decoded") from error
