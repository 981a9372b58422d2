"""Synthesises songs from a seed, as stems for training and testing that need no download and no licence.

Every song has its own key, tempo, chords, singer, instruments and room. voice.py makes the voice; this module makes the
arrangement, the instruments and the mix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from wroformer_jax.data.synthetic import voice
from wroformer_jax.errors import InputError
from wroformer_jax.stems import SYNTHETIC_STEMS

TRAIN, VALIDATION = 0, 1  # the second number of a song's seed: (seed, TRAIN or VALIDATION, index)
MIN_SAMPLE_RATE = 16000  # Hz; consonants and cymbals need high frequencies

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the scale on which the chords are built, one chord per bar.
_PROGRESSIONS = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (5, 3, 0, 4),
    (0, 3, 4, 3),
    (0, 3, 1, 4),
    (0, 2, 3, 4),
    (0, 6, 5, 4),
)
_NOTE_BEATS = (0.5, 0.5, 1.0, 1.0, 1.0, 1.5, 2.0)
_BEATS_PER_BAR = 4
_TABLE = 4096  # samples of a wavetable

_Audio = Float32[np.ndarray, "channel sample"]


def synthesise_song(
    seed: int | Sequence[int], seconds: float, sample_rate: int = 44100
) -> dict[str, Float32[np.ndarray, "2 sample"]]:
    """Returns the stereo stems of a song. Their sum is the mixture, whose peak is below full scale (1).

    The same arguments always give the same samples. The voice is 0 to 6 dB weaker than the other stems together, as in
    songs with a prominent voice, so that the mixture taken as an estimate of the vocals has an SDR of -6 to 0 dB.

    Args:
      seed: an integer, or a sequence of them: `(seed, split, index)` for the songs of a set.
      seconds: length; the first phrase of the voice begins within the first beat.
      sample_rate: in Hz, at least MIN_SAMPLE_RATE.

    Raises:
      InputError: the length is not positive, or the sample rate is too low.
    """
    num_samples = round(seconds * sample_rate)
    if num_samples <= 0:
        raise InputError(f"seconds is {seconds!r}, expected a length above zero")
    if sample_rate < MIN_SAMPLE_RATE:
        raise InputError(f"sample_rate is {sample_rate!r}, expected at least {MIN_SAMPLE_RATE} Hz")
    rng = np.random.default_rng(seed)
    beat = 60 / rng.uniform(72, 138)  # seconds
    scale = np.array(_SCALES["major" if rng.random() < 0.6 else "minor"])
    tonic = int(rng.integers(43, 55))  # MIDI note number
    num_bars = int(np.ceil(seconds / (beat * _BEATS_PER_BAR)))
    progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    chords = [progression[bar % len(progression)] for bar in range(num_bars)]
    studio = _Studio(rng, num_samples, sample_rate, beat, scale, tonic, chords)

    dry_voice = voice.sing(rng, _melody(studio), num_samples, sample_rate)
    stems = {
        "vocals": _pan(dry_voice, rng.uniform(-0.15, 0.15)),
        "drums": _drums(studio),
        "bass": _bass(studio),
        "other": _chords(studio) + _arpeggio(studio),
    }
    room = _room(rng, sample_rate)
    stems["vocals"] += rng.uniform(0.05, 0.2) * _reverberate(stems["vocals"], room)
    stems["other"] += rng.uniform(0.05, 0.3) * _reverberate(stems["other"], room)
    return mix(rng, stems)


class _Studio:
    """The plan of a song and its random generator, which all instruments share."""

    def __init__(self, rng, num_samples, sample_rate, beat, scale, tonic, chords):
        self.rng = rng
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.beat = beat  # seconds
        self.scale = scale  # semitones above the tonic
        self.tonic = tonic
        self.chords = chords  # degree of the scale for each bar

    @property
    def num_beats(self) -> int:
        return len(self.chords) * _BEATS_PER_BAR

    def pitch(self, degree: int) -> int:
        """Returns the MIDI note number of a degree of the scale; an octave has 7 degrees."""
        octave, step = divmod(degree, 7)
        return self.tonic + 12 * octave + int(self.scale[step])

    def silence(self) -> _Audio:
        return np.zeros((2, self.num_samples), np.float32)

    def add(self, track: _Audio, beat: float | int, sound: np.ndarray) -> None:
        """Adds a mono (sample,) or stereo (channel, sample) sound to a track, and cuts it at the end of the song."""
        start = round(beat * self.beat * self.sample_rate)
        length = min(sound.shape[-1], self.num_samples - start)
        if length > 0:
            track[:, start : start + length] += sound[..., :length]


def _melody(studio: _Studio) -> list[voice.SungNote]:
    """Returns the notes of the voice: phrases of 3 to 7 beats and rests, in the scale and close to the chords."""
    rng = studio.rng
    centre = int(rng.integers(52, 70))  # tenor to soprano
    degrees = [d for d in range(-7, 28) if abs(studio.pitch(d) - centre) <= 8]
    position = len(degrees) // 2
    consonants = [None, None, "s", "sh", "f", "t"]
    notes = []
    beat = rng.uniform(0, 1)
    while beat < studio.num_beats:
        end = beat + rng.uniform(3, 7)
        first = True
        while beat < end:
            beats = rng.choice(_NOTE_BEATS)
            position = int(np.clip(position + rng.choice([-2, -1, -1, 0, 1, 1, 2]), 0, len(degrees) - 1))
            chord = studio.chords[min(int(beat) // _BEATS_PER_BAR, len(studio.chords) - 1)]
            if beats >= 1 and (degrees[position] - chord) % 7 not in (0, 2, 4):
                position = int(np.clip(position + rng.choice([-1, 1]), 0, len(degrees) - 1))
            notes.append(
                voice.SungNote(
                    start=beat * studio.beat,
                    seconds=beats * studio.beat,
                    pitch=float(studio.pitch(degrees[position])),
                    vowel=str(rng.choice(list(voice.VOWELS))),
                    consonant=consonants[rng.integers(len(consonants))],
                    level=rng.uniform(0.6, 1.0),
                    breath=first and rng.random() < 0.8,
                )
            )
            beat += beats
            first = False
        beat += rng.uniform(0.8, 3)
    return notes


def _chords(studio: _Studio) -> _Audio:
    """Plays the chord of each bar on a pad, an organ or a piano."""
    rng = studio.rng
    style = rng.choice(["pad", "organ", "piano"])
    table = _wavetable(rng, {"pad": 1.3, "organ": 0.8, "piano": 1.6}[style], harmonics=12)
    beats_per_stroke = {"pad": 4, "organ": 4, "piano": int(rng.choice([1, 2]))}[style]
    attack = {"pad": 0.15, "organ": 0.02, "piano": 0.004}[style]
    decay = {"pad": 6.0, "organ": 20.0, "piano": 0.7}[style]
    track = studio.silence()
    for bar, degree in enumerate(studio.chords):
        for stroke in range(0, _BEATS_PER_BAR, beats_per_stroke):
            for k, step in enumerate((0, 2, 4, 7)[: rng.integers(3, 5)]):
                tone = _tone(studio, table, studio.pitch(degree + step), float(beats_per_stroke), attack, decay)
                studio.add(track, bar * _BEATS_PER_BAR + stroke, _pan(tone, (k - 1.5) * 0.4))
    return track


def _arpeggio(studio: _Studio) -> _Audio:
    """A plucked or flute-like figure over the chords, in two songs of three."""
    rng = studio.rng
    track = studio.silence()
    if rng.random() < 0.33:
        return track
    plucked = rng.random() < 0.5
    table = _wavetable(rng, 1.2 if plucked else 2.2, harmonics=10 if plucked else 5)
    attack, decay = (0.003, 0.25) if plucked else (0.06, 5.0)
    step = float(rng.choice([0.5, 1.0]))  # beats
    figure = rng.permutation([7, 9, 11, 14])
    position = rng.choice([-0.6, 0.6])
    for index in range(int(studio.num_beats / step)):
        if rng.random() < 0.15:
            continue
        degree = studio.chords[int(index * step) // _BEATS_PER_BAR] + int(figure[index % len(figure)])
        tone = _tone(studio, table, studio.pitch(degree), step, attack, decay)
        studio.add(track, index * step, 0.6 * _pan(tone, position))
    return track


def _bass(studio: _Studio) -> _Audio:
    """Plays roots and fifths, in the middle of the stereo image."""
    rng = studio.rng
    table = _wavetable(rng, 1.5, harmonics=8)
    step = float(rng.choice([0.5, 1.0, 2.0]))  # beats
    decay = rng.uniform(0.3, 1.5)
    track = studio.silence()
    for index in range(int(studio.num_beats / step)):
        degree = studio.chords[int(index * step) // _BEATS_PER_BAR] + int(rng.choice([0, 0, 0, 4, 7]))
        pitch = 28 + (studio.pitch(degree) - 28) % 12  # in the octave above the lowest string of a bass guitar
        studio.add(track, index * step, _tone(studio, table, pitch, step, 0.005, decay))
    return track


def _drums(studio: _Studio) -> _Audio:
    """Plays kick, snare and hi-hat in a pattern of eighths; hits vary a little in time and strength."""
    rng = studio.rng
    rate = studio.sample_rate
    kick, snare, hat = _kick(rng, rate), _snare(rng, rate), _hat(rng, rate)
    kicks = {0, 4} | set(rng.choice([1, 2, 3, 5, 6, 7], size=rng.integers(0, 3)).tolist())
    hats_on_eighths = rng.random() < 0.7
    hat_position = rng.uniform(-0.5, 0.5)
    track = studio.silence()
    for eighth in range(2 * studio.num_beats):
        beat = max(0.0, eighth / 2 + rng.normal(0, 0.006) / studio.beat)
        strength = rng.uniform(0.7, 1.0)
        if eighth % 8 in kicks:
            studio.add(track, beat, strength * kick)
        if eighth % 4 == 2:
            studio.add(track, beat, strength * snare)
        if hats_on_eighths or eighth % 2 == 0:
            studio.add(track, beat, _pan(strength * hat, hat_position))
    return track


def _kick(rng, rate: int) -> np.ndarray:
    t = np.arange(int(0.35 * rate)) / rate
    low, sweep = rng.uniform(42, 60), rng.uniform(80, 160)  # Hz
    phase = 2 * np.pi * (low * t + sweep * 0.03 * (1 - np.exp(-t / 0.03)))
    click = rng.standard_normal(len(t)) * np.exp(-t / 0.003)
    return (np.sin(phase) * np.exp(-t / rng.uniform(0.08, 0.16)) + 0.15 * click).astype(np.float32)


def _snare(rng, rate: int) -> np.ndarray:
    t = np.arange(int(0.3 * rate)) / rate
    body = np.sin(2 * np.pi * rng.uniform(170, 230) * t) * np.exp(-t / 0.06)
    wires = rng.standard_normal((2, len(t))) * np.exp(-t / rng.uniform(0.06, 0.12))
    return (0.5 * body + 0.45 * wires).astype(np.float32)


def _hat(rng, rate: int) -> np.ndarray:
    t = np.arange(int(0.12 * rate)) / rate
    noise = rng.standard_normal(len(t) + 2)
    treble = noise[2:] - 2 * noise[1:-1] + noise[:-2]  # two differences: 12 dB per octave
    return (0.12 * treble * np.exp(-t / rng.uniform(0.015, 0.04))).astype(np.float32)


def _wavetable(rng, slope: float, harmonics: int) -> Float32[np.ndarray, " phase"]:
    """Returns one period; harmonic n has about the amplitude n ** -slope and a random phase."""
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
    n = np.arange(1, harmonics + 1)
    amplitude = n**-slope * rng.uniform(0.4, 1.0, harmonics)
    spectrum[1 : harmonics + 1] = amplitude * np.exp(2j * np.pi * rng.random(harmonics))
    wave = np.fft.irfft(spectrum)
    return (wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def _tone(studio: _Studio, table, pitch: int, beats: float, attack: float, decay: float) -> np.ndarray:
    """Returns a note of `beats` with an attack (seconds), an exponential decay (seconds) and a short release."""
    rate = studio.sample_rate
    num = max(2, int(beats * studio.beat * rate))
    frequency = 440 * 2 ** ((pitch + studio.rng.normal(0, 0.04) - 69) / 12)
    step = frequency / rate * _TABLE
    index = (studio.rng.random() * _TABLE + step * np.arange(num)).astype(np.int64) % _TABLE
    t = np.arange(num, dtype=np.float32) / rate
    envelope = np.minimum(1, t / attack) * np.exp(-t / decay) * np.minimum(1, (t[-1] - t) / 0.03)
    return (table[index] * envelope).astype(np.float32)


def _pan(mono: np.ndarray, position: float) -> _Audio:
    """Places a sound between the channels with constant power; -1 is left, 1 is right."""
    angle = np.pi / 4 * (1 + np.clip(position, -1, 1))
    return np.float32(np.sqrt(2)) * np.array([np.cos(angle), np.sin(angle)], np.float32)[:, None] * mono


def _room(rng, sample_rate: int) -> Float32[np.ndarray, "channel tap"]:
    """Returns a stereo impulse response: noise that decays by 60 dB in 0.4 to 1 s."""
    seconds = rng.uniform(0.4, 1.0)
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    noise = rng.standard_normal((2, len(t))) * 10 ** (-3 * t / seconds)
    return (noise / np.sqrt(np.sum(noise**2, axis=1, keepdims=True))).astype(np.float32)


def _reverberate(audio: _Audio, room: Float32[np.ndarray, "channel tap"]) -> _Audio:
    from scipy import signal

    wet = signal.oaconvolve(audio, room, axes=1)
    return wet[:, : audio.shape[1]].astype(np.float32)


def mix(rng, stems: dict[str, _Audio]) -> dict[str, _Audio]:
    """Sets the levels of the band's stems, then of the voice against the band, then the peak of the mixture."""
    levels = {"drums": rng.uniform(-3, 2), "bass": rng.uniform(-5, 0), "other": rng.uniform(-5, 2)}  # dB
    mixed = {name: stems[name] * _gain(stems[name], level) for name, level in levels.items()}
    band = mixed["drums"] + mixed["bass"] + mixed["other"]
    band_level = 10 * np.log10(np.mean(np.square(band)) + 1e-12)
    vocals = stems["vocals"]
    mixed["vocals"] = vocals * _gain(vocals, float(band_level) + rng.uniform(-6, 0))
    peak = np.max(np.abs(band + mixed["vocals"]))
    scale = np.float32(rng.uniform(0.6, 0.95) / max(peak, 1e-6))
    return {name: mixed[name] * scale for name in SYNTHETIC_STEMS}


def _gain(audio: _Audio, decibels: float) -> np.float32:
    """Returns the factor that scales audio to a mean power of `decibels`; 0 for silence."""
    power = np.mean(np.square(audio))
    return np.float32(np.sqrt(10 ** (decibels / 10) / power) if power > 0 else 0)
