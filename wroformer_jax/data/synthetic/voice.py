"""Synthesises a singing voice: glottal pulses with vibrato and portamento, moving formants, consonants and breaths.

Source-filter synthesis: a band-limited sawtooth (the -6 dB per octave of glottis and lips together) follows a
pitch contour, noise stands for breath and consonants, and both pass formants that move from vowel to vowel.
Filters that change with time are applied as gains on short spectra, which takes 0.1 s for a song of 30 s.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Float32
from numpy.lib.stride_tricks import sliding_window_view

CONTROL_HOP = 512  # samples from one setting of the filters and contours to the next
_FRAME = 2 * CONTROL_HOP

# Centre frequencies of the first five formants in Hz, a male voice: Peterson and Barney (1952) for the first
# three, the usual neutral values above. Female voices and children scale them up.
VOWELS = {
    "a": (730, 1090, 2440, 3300, 4200),
    "e": (530, 1840, 2480, 3400, 4300),
    "i": (270, 2290, 3010, 3500, 4400),
    "o": (570, 840, 2410, 3200, 4100),
    "u": (300, 870, 2240, 3100, 4100),
    "uh": (640, 1190, 2390, 3300, 4200),
}
_FORMANT_BANDWIDTHS = (80, 100, 140, 200, 260)  # Hz
_FORMANT_GAINS_DB = (0, -5, -11, -15, -22)
# Noise of consonants: lower edge, upper edge (Hz), gain (dB re the vowels), length (seconds).
_CONSONANTS = {
    "s": (5000, 11000, -14, 0.11),
    "sh": (2200, 7000, -14, 0.10),
    "f": (1500, 12000, -24, 0.09),
    "t": (2500, 9000, -12, 0.03),
}


@dataclasses.dataclass(frozen=True)
class SungNote:
    """A sung syllable: start and length in seconds, pitch as a MIDI note number, and sounds."""

    start: float
    seconds: float
    pitch: float
    vowel: str
    consonant: str | None
    level: float  # linear, about 1
    breath: bool  # whether the singer breathes in before it


def sing(
    rng: np.random.Generator, notes: list[SungNote], num_samples: int, sample_rate: int
) -> Float32[np.ndarray, " sample"]:
    """Synthesises a mono voice that sings `notes` and is silent between them.

    Args:
      rng: draws the singer (vocal tract, vibrato, breathiness) and the noise.
      notes: sorted by start, not overlapping.
      num_samples: length of the result.
      sample_rate: in Hz.
    """
    num_frames = num_samples // CONTROL_HOP + 2
    seconds_per_frame = CONTROL_HOP / sample_rate
    times = np.arange(num_frames) * seconds_per_frame
    mean_pitch = float(np.mean([note.pitch for note in notes])) if notes else 60.0
    # A higher voice has a shorter vocal tract: about 17 % over an octave.
    tract = 1 + 0.17 * (mean_pitch - 52) / 12 + rng.uniform(-0.05, 0.05)

    pitch = _pitch_contour(rng, notes, times)
    voicing = _note_curve(notes, times, [n.level for n in notes], gap=0.02, smooth_seconds=0.05)
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    sample_times = np.arange(num_samples) / CONTROL_HOP
    source = sawtooth(np.interp(sample_times, np.arange(num_frames), frequency) / sample_rate)
    source *= np.interp(sample_times, np.arange(num_frames), voicing).astype(np.float32)

    frequencies = np.fft.rfftfreq(_FRAME, 1 / sample_rate).astype(np.float32)
    formants = _formant_gains(notes, times, frequencies, tract)
    breathiness = 10 ** (rng.uniform(-38, -28) / 20)
    noise_gains = _noise_gains(notes, times, frequencies, formants, voicing * breathiness)
    noise = rng.standard_normal(num_samples, dtype=np.float32)
    return _filter(source, formants) + _filter(noise, noise_gains)


def _pitch_contour(rng, notes: list[SungNote], times: np.ndarray) -> np.ndarray:
    """Returns the pitch at `times` as MIDI note numbers: smoothed steps (portamento), vibrato and a little drift."""
    if not notes:
        return np.full(len(times), 60.0)
    starts = np.array([note.start for note in notes])
    index = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
    pitch = np.array([note.pitch for note in notes])[index]
    pitch = _smooth(pitch, rng.uniform(0.06, 0.16), times)
    age = times - starts[index]  # vibrato begins a little after the note
    depth = rng.uniform(0.3, 0.9) * np.clip((age - 0.15) / 0.3, 0, 1)
    rate = rng.uniform(4.8, 6.6) + 0.3 * _wander(rng, len(times), 40)
    vibrato = np.sin(2 * np.pi * np.cumsum(rate) * (times[1] - times[0]))
    return pitch + depth * vibrato + 0.12 * _wander(rng, len(times), 12)


def _note_curve(notes, times, values, gap: float, smooth_seconds: float) -> np.ndarray:
    """Returns a smooth curve: each value during its note, which ends `gap` seconds early, and 0 elsewhere."""
    curve = np.zeros(len(times))
    for note, value in zip(notes, values, strict=True):
        curve[(times >= note.start) & (times < note.start + note.seconds - gap)] = value
    return _smooth(curve, smooth_seconds, times)


def _formant_gains(notes, times, frequencies, tract: float) -> Float32[np.ndarray, "frame bin"]:
    """Returns the magnitude of the vocal tract's frequency response over time."""
    vowels = np.array([VOWELS[note.vowel] for note in notes] or [VOWELS["a"]], np.float64)
    starts = np.array([note.start for note in notes] or [0.0])
    index = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
    gains = np.zeros((len(times), len(frequencies)), np.float32)
    for formant, (bandwidth, decibels) in enumerate(zip(_FORMANT_BANDWIDTHS, _FORMANT_GAINS_DB, strict=True)):
        centre = _smooth(vowels[index, formant] * tract, 0.12, times).astype(np.float32)
        distance = (frequencies[None, :] - centre[:, None]) / np.float32(bandwidth)
        gains += np.float32(10 ** (decibels / 20)) / np.sqrt(1 + distance * distance)
    return gains


def _noise_gains(notes, times, frequencies, formants, aspiration) -> Float32[np.ndarray, "frame bin"]:
    """Returns the gain of white noise over time: breath passes through the formants, consonants have bands."""
    envelope = np.array(aspiration)
    for note in notes:
        if note.breath:
            phase = (times - (note.start - 0.42)) / 0.34  # breathing in takes 0.34 s and ends before the note
            envelope += np.where((phase > 0) & (phase < 1), 0.05 * np.sin(np.pi * phase) ** 2, 0)
    # Breath has more high frequencies than the vocal folds.
    brightness = frequencies / (frequencies + np.float32(2000))
    gains = envelope.astype(np.float32)[:, None] * formants * brightness
    for name, (low, high, decibels, seconds) in _CONSONANTS.items():
        spoken = [note for note in notes if note.consonant == name]
        if not spoken:
            continue
        curve = np.zeros(len(times))
        for note in spoken:
            curve = np.maximum(curve, note.level * np.clip(1 - np.abs(times - note.start) / seconds, 0, 1))
        band = 1 / (1 + (low / np.maximum(frequencies, 1)) ** 6) / (1 + (frequencies / high) ** 6)
        gains += (0.4 * 10 ** (decibels / 20) * curve[:, None] * band).astype(np.float32)
    return gains


def sawtooth(cycles_per_sample: np.ndarray) -> Float32[np.ndarray, " sample"]:
    """Returns a sawtooth of varying frequency whose steps are rounded over two samples (polyBLEP) against aliasing."""
    phase = np.cumsum(cycles_per_sample) % 1
    wave = 2 * phase - 1
    after = np.flatnonzero(phase < cycles_per_sample)
    x = phase[after] / cycles_per_sample[after]
    wave[after] -= 2 * x - x * x - 1
    before = np.flatnonzero(phase > 1 - cycles_per_sample)
    x = (phase[before] - 1) / cycles_per_sample[before]
    wave[before] -= x * x + 2 * x + 1
    return wave.astype(np.float32)


def _filter(
    signal: Float[np.ndarray, " sample"], gains: Float32[np.ndarray, "frame bin"]
) -> Float32[np.ndarray, " sample"]:
    """Applies a spectral gain that changes every CONTROL_HOP samples, with half-overlapping sine windows."""
    from scipy import fft

    num_frames = len(gains)
    padded = np.zeros((num_frames + 1) * CONTROL_HOP, np.float32)
    padded[CONTROL_HOP : CONTROL_HOP + len(signal)] = signal
    window = np.sin(np.pi * (np.arange(_FRAME, dtype=np.float32) + 0.5) / _FRAME)
    frames = sliding_window_view(padded, _FRAME)[::CONTROL_HOP] * window
    frames = np.asarray(fft.irfft(np.asarray(fft.rfft(frames)) * gains, _FRAME)) * window
    halves = np.zeros((num_frames + 1, CONTROL_HOP), np.float32)
    halves[:-1] = frames[:, :CONTROL_HOP]
    halves[1:] += frames[:, CONTROL_HOP:]
    return halves.reshape(-1)[CONTROL_HOP : CONTROL_HOP + len(signal)]


def _smooth(curve: np.ndarray, seconds: float, times: np.ndarray) -> np.ndarray:
    """Convolves a curve with a Hann bump `seconds` long; the ends are extended by their values."""
    length = 2 * round(seconds / (times[1] - times[0]) / 2) + 1
    bump = np.hanning(length + 2)[1:-1]
    return np.convolve(np.pad(curve, length // 2, mode="edge"), bump / bump.sum(), mode="valid")


def _wander(rng, length: int, period: int) -> np.ndarray:
    """Returns smooth noise of about unit size: random values every `period` points, joined by lines."""
    points = rng.standard_normal(length // period + 2)
    return np.interp(np.arange(length) / period, np.arange(len(points)), points)
