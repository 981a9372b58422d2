"""Segments: exact and rounded encodings, damaged bytes, and measured levels."""

import io
import math

import numpy as np
import pytest
import soundfile

from wroformer_jax.data.segments import ENCODINGS, Encoded, active_marks, decode, encode, level_db

RATE = 1000


def random_bits(bits, samples=3000, channels=2, seed=0):
    """Returns random values of `bits` bits, with both extremes among them."""
    full_scale = 2 ** (bits - 1)
    integers = np.random.default_rng(seed).integers(-full_scale, full_scale, (channels, samples))
    integers[0, :2] = -full_scale, full_scale - 1
    return (integers / full_scale).astype(np.float32)


def noise(peak=1.0, samples=3000, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-peak, peak, (channels, samples)).astype(np.float32)


def decoded_part(encoded, channels, start, stop):
    out = np.full((channels, stop - start), np.nan, np.float32)
    decode(encoded, start, out)
    return out


def through(audio, encoding):
    encoded = encode(audio, encoding, RATE)
    return encoded, decoded_part(encoded, len(audio), 0, audio.shape[-1])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_16_bits_are_exact(encoding, channels):
    audio = random_bits(16, channels=channels)
    encoded, decoded = through(audio, encoding)
    np.testing.assert_array_equal(decoded, audio, strict=True)
    assert encoded.scale == 1


def test_lossless_takes_as_few_bits_as_are_exact():
    for bits in (16, 24):
        audio = random_bits(bits)
        encoded, decoded = through(audio, "lossless")
        np.testing.assert_array_equal(decoded, audio)
        assert soundfile.info(io.BytesIO(encoded.data)).subtype == f"PCM_{bits}"
        assert soundfile.info(io.BytesIO(encoded.data)).samplerate == RATE


@pytest.mark.parametrize("peak", [1e-3, 0.999, 1.0, 1.7, 5.0, 1000.0])
@pytest.mark.parametrize(("encoding", "bits"), [("lossless", 24), ("int16", 16)])
def test_rounding_is_at_most_half_a_step_and_nothing_is_clipped(peak, encoding, bits):
    audio = noise(peak)
    audio[0, 0] = peak
    audio[1, 0] = -peak
    encoded, decoded = through(audio, encoding)
    assert encoded.scale == 2 ** max(0, math.ceil(math.log2(peak)) + (peak == 1))  # +1 itself is out of range
    assert np.abs(decoded.astype(np.float64) - audio).max() <= 0.5 * 2.0 ** (1 - bits) * encoded.scale


def test_minus_full_scale_needs_no_scale():
    encoded, decoded = through(np.full((2, 50), -1, np.float32), "lossless")
    assert encoded.scale == 1
    assert np.all(decoded == -1)


def test_16_bits_beyond_full_scale_are_exact_in_lossless():
    """Like the sum of 16-bit stems."""
    audio = random_bits(16, seed=1) + random_bits(16, seed=2)
    encoded, decoded = through(audio, "lossless")
    np.testing.assert_array_equal(decoded, audio)
    assert encoded.scale == 2


def test_float32_is_exact_for_anything():
    audio = noise(3.0)
    audio[0, :4] = 1e-42, -0.0, 1e9, -1e-9
    encoded, decoded = through(audio, "float32")
    assert decoded.tobytes() == audio.tobytes()
    assert (encoded.kind, encoded.scale) == ("float32", 1)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_parts_are_those_of_the_whole(encoding):
    audio = random_bits(16, samples=50_000)
    encoded = encode(audio, encoding, RATE)
    rng = np.random.default_rng(0)
    for start, stop in [(0, 1), (49_999, 50_000), (0, 50_000), *np.sort(rng.integers(0, 50_000, (100, 2)))]:
        np.testing.assert_array_equal(decoded_part(encoded, 2, int(start), int(stop)), audio[:, start:stop])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("samples", [1, 2, 15, 17, 4097])
def test_segments_of_a_few_samples(encoding, samples):
    audio = random_bits(16, samples=4097)[:, :samples]
    np.testing.assert_array_equal(through(audio, encoding)[1], audio)


@pytest.mark.parametrize("rate", [1, 100, 11_025, 44_100, 192_000, 655_350])
def test_any_rate(rate):
    audio = random_bits(16, samples=100)
    np.testing.assert_array_equal(decoded_part(encode(audio, "lossless", rate), 2, 0, 100), audio)


def test_silence_takes_hardly_any_room():
    assert len(encode(np.zeros((2, 100_000), np.float32), "lossless", 44_100).data) < 10_000


@pytest.mark.parametrize(
    "damaged",
    [
        Encoded("flac", 1.0, b"no FLAC"),
        Encoded("flac", 1.0, encode(random_bits(16), "lossless", RATE).data[:2000]),
        Encoded("flac", 1.0, encode(random_bits(16, channels=1), "lossless", RATE).data),
        Encoded("int16", 1.0, bytes(3999)),
        Encoded("float32", 1.0, bytes(8)),
    ],
)
def test_damage_is_a_value_error(damaged):
    with pytest.raises(ValueError, match=r"FLAC that cannot be decoded|FLAC of .* 1 channels|buffer is smaller"):
        decoded_part(damaged, 2, 0, 3000)


def test_level():
    assert level_db(np.zeros((2, 10), np.float32)) == -math.inf
    assert level_db(np.zeros((2, 0), np.float32)) == -math.inf
    assert level_db(np.full((2, 10), -1, np.float32)) == 0
    half_silent = np.stack([np.full(10, 0.1), np.zeros(10)]).astype(np.float32)
    assert level_db(half_silent) == pytest.approx(-23.0103, abs=1e-4)
    quiet = np.full((2, 1_000_000), 1e-20, np.float32)
    assert level_db(quiet) == pytest.approx(-400)


def test_active_seconds():
    audio = np.zeros((2, 3 * RATE + 1), np.float32)
    audio[:, RATE : 2 * RATE] = 1.01e-3
    audio[:, 2 * RATE : 3 * RATE] = 0.99e-3
    audio[:, -1] = 1
    assert active_marks(audio, RATE) == "0101"
    assert active_marks(audio[:, :0], RATE) == ""
