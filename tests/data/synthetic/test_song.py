"""Synthesised songs: reproducible, never clipped, and with stems that sound like their names."""

import numpy as np
import pytest

from wroformer_jax.data.synthetic import song as synthetic
from wroformer_jax.data.synthetic import voice
from wroformer_jax.data.synthetic.song import synthesise_song
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.metrics import usdr
from wroformer_jax.stems import SYNTHETIC_STEMS

RATE = 44100


@pytest.fixture(scope="module")
def songs():
    return [synthesise_song((5, 0, index), 8.0) for index in range(6)]


def power_db(audio):
    return 10 * np.log10(np.mean(np.square(audio)) + 1e-20)


def test_stems_are_stereo_float32_of_the_length_asked_for(songs):
    for song in songs:
        assert tuple(song) == SYNTHETIC_STEMS
        for stem in song.values():
            assert stem.dtype == np.float32
            assert stem.shape == (2, 8 * RATE)
            assert np.isfinite(stem).all()


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.23])
def test_short_songs(seconds):
    song = synthesise_song(3, seconds)
    assert all(stem.shape == (2, round(seconds * RATE)) for stem in song.values())
    assert np.abs(sum(song.values())).max() < 1


def test_other_sample_rate():
    assert synthesise_song(3, 1.0, sample_rate=22050)["vocals"].shape == (2, 22050)


def test_same_seed_same_samples(songs):
    again = synthesise_song((5, 0, 2), 8.0)
    for name in SYNTHETIC_STEMS:
        np.testing.assert_array_equal(again[name], songs[2][name])


def test_other_seeds_are_other_songs(songs):
    others = [synthesise_song(seed, 8.0)["vocals"] for seed in (5, (5, 1, 2), (6, 0, 2))]
    for vocals in [*others, *(song["vocals"] for song in songs[:2])]:
        assert abs(usdr(songs[2]["vocals"], vocals)) < 6  # nothing alike


def test_levels_are_those_of_music(songs):
    for song in songs:
        mixture = sum(song.values())
        assert 0.5 < np.abs(mixture).max() < 1
        assert -6.01 < usdr(song["vocals"], mixture) < 0.01
        for name in ("drums", "bass", "other"):
            assert power_db(song[name]) > power_db(mixture) - 15


def test_voice_sings_rests_and_stays_in_the_middle(songs):
    rests = []
    for song in songs:
        frames = song["vocals"].reshape(2, -1, RATE // 20)
        level = 10 * np.log10(np.mean(np.square(frames), axis=(0, 2)) + 1e-20)
        sung = level > level.max() - 20
        assert 0.3 < sung.mean() < 1
        assert abs(power_db(song["vocals"][0]) - power_db(song["vocals"][1])) < 3
        rests.append(np.mean(level < level.max() - 30))
    assert max(rests) > 0


def test_voice_follows_its_pitch_and_moves_its_formants():
    notes = [
        voice.SungNote(start, 1.0, pitch, vowel, consonant=None, level=1.0, breath=False)
        for start, pitch, vowel in ((0.0, 57.0, "a"), (1.0, 64.0, "i"))
    ]
    sung = voice.sing(np.random.default_rng(0), notes, 2 * RATE, RATE)
    for note in notes:
        middle = sung[int((note.start + 0.3) * RATE) :][: RATE // 2]
        lags = np.fft.irfft(np.abs(np.fft.rfft(middle, 2 * len(middle))) ** 2)
        shortest = RATE // 600
        period = shortest + np.argmax(lags[shortest : RATE // 100])
        assert 12 * np.log2(RATE / period / 440) + 69 == pytest.approx(note.pitch, abs=0.8)

    def share_between(low, high, start):
        power = np.abs(np.fft.rfft(sung[int(start * RATE) :][: RATE // 2])) ** 2
        hz = np.fft.rfftfreq(RATE // 2, 1 / RATE)
        return power[(hz > low) & (hz < high)].sum() / power.sum()

    assert share_between(550, 1500, 0.3) > 3 * share_between(550, 1500, 1.3)  # "a" is open, "i" is not


def test_consonants_hiss_and_no_notes_are_silence():
    rng = np.random.default_rng
    note = voice.SungNote(0.5, 0.5, 60.0, "u", consonant="s", level=1.0, breath=False)
    treble = []
    for consonant in ("s", None):
        sung = voice.sing(rng(1), [note.__class__(**{**vars(note), "consonant": consonant})], RATE, RATE)
        treble.append(np.sum(np.abs(np.fft.rfft(sung))[7000:] ** 2))
    assert treble[0] > 10 * treble[1]
    assert not voice.sing(rng(1), [], RATE, RATE).any()


def test_sawtooth_hardly_aliases():
    wave = voice.sawtooth(np.full(RATE, 1234.5 / RATE))
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(RATE)))
    away = np.ones(len(spectrum), bool)
    for harmonic in range(1, 18):
        away[int(harmonic * 1234.5) - 4 : int(harmonic * 1234.5) + 6] = False
    assert 20 * np.log10(spectrum[away][:8000].max() / spectrum.max()) < -45


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
def test_no_length_is_refused(seconds):
    with pytest.raises(InputError, match="seconds is"):
        synthesise_song(0, seconds)


def test_low_sample_rate_is_refused():
    with pytest.raises(InputError, match="sample_rate is 8000"):
        synthesise_song(0, 1.0, sample_rate=8000)


def test_mix_of_silent_stems_is_silent():
    silent = {name: np.zeros((2, 100), np.float32) for name in SYNTHETIC_STEMS}
    mixed = synthetic.mix(np.random.default_rng(0), silent)
    assert not any(stem.any() for stem in mixed.values())
