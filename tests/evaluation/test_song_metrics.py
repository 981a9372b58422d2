"""cSDR against museval, bleedless and fullness against a plain librosa version, leakage against hand-made pauses."""

import builtins
import math
import sys

import librosa
import numpy as np
import pytest
from support.museval_package import museval

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.metrics import bleedless_fullness, csdr, import_museval, leakage_db, museval_csdr

RATE = 8000


def noise(seed, seconds=3.0, scale=0.1, channels=2):
    generator = np.random.default_rng(seed)
    envelope = np.linspace(0.2, 1, round(seconds * RATE))  # seconds differ
    return (scale * envelope * generator.standard_normal((channels, len(envelope)))).astype(np.float32)


def stems(seconds=2.0, channels=2, count=2):
    references = [noise(i, seconds, channels=channels) for i in range(count)]
    estimates = [audio + noise(10 + i, seconds, 0.02 * (i + 1), channels) for i, audio in enumerate(references)]
    estimates[0] = estimates[0] + 0.1 * references[-1]
    return references, estimates


def by_museval(references, estimates):
    """The median over the SDRs of museval.evaluate, as museval's own stores compute it."""
    decibels, *_ = museval().evaluate(
        np.stack([audio.T for audio in references]).astype(np.float64),
        np.stack([audio.T for audio in estimates]).astype(np.float64),
        win=RATE,
        hop=RATE,
    )
    return np.nanmedian(np.where(np.isinf(decibels), np.nan, decibels), axis=1)


# --- cSDR


@pytest.mark.parametrize(
    ("seconds", "channels", "count"),
    [
        (2.0, 1, 3),
        pytest.param(2.6, 2, 2, marks=pytest.mark.slow),
        (4.0, 1, 1),
        (0.4, 2, 1),
        (1.0, 2, 1),
        (1.1, 1, 1),
    ],
)
def test_csdr_equals_musevals(seconds, channels, count):
    references, estimates = stems(seconds, channels, count)
    expected = by_museval(references, estimates)
    np.testing.assert_allclose(csdr(references, estimates, sample_rate=RATE), expected, atol=1e-6)
    np.testing.assert_allclose(museval_csdr(references, estimates, sample_rate=RATE), expected, atol=1e-12)


def test_csdr_equals_musevals_with_silent_seconds_exact_seconds_and_equal_channels():
    references, estimates = stems(5.0)
    references[0][:, RATE : 2 * RATE] = 0  # counts for no stem
    estimates[1][0, 2 * RATE : 3 * RATE] = -estimates[1][1, 2 * RATE : 3 * RATE]  # silence when added up
    references[1][1] = references[1][0]
    estimates[0][:, :RATE] = references[0][:, :RATE]  # no error
    expected = by_museval(references, estimates)
    np.testing.assert_allclose(csdr(references, estimates, sample_rate=RATE), expected, atol=1e-6)


@pytest.mark.parametrize("function", [csdr, museval_csdr])
def test_csdr_of_silence_is_undefined_and_other_stems_are_scored_without_it(function):
    museval()
    references, estimates = stems()
    alone = function(references[1:], estimates[1:], sample_rate=RATE)
    for silent in (references, estimates):
        audio = silent[0]
        silent[0] = np.zeros_like(audio)
        scores = function(references, estimates, sample_rate=RATE)
        assert math.isnan(scores[0])
        assert scores[1:] == alone
        silent[0] = audio
    assert np.isnan(function([np.zeros_like(noise(0))], [noise(0)], sample_rate=RATE)).all()


def test_csdr_of_equal_signals_is_the_maximum():
    assert csdr([noise(0)], [noise(0)], sample_rate=RATE) == [pytest.approx(140, abs=1e-3)]


def test_csdr_of_different_shapes_is_refused():
    with pytest.raises(InputError, match="shapes"):
        csdr([noise(0)], [noise(0)[:, 1:]], sample_rate=RATE)


def test_missing_museval_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "museval", None)
    with pytest.raises(InputError, match=r'museval needs museval: install it with pip install "wroformer-jax\[eval\]"'):
        import_museval()


def test_museval_without_ffmpeg_is_one_sentence(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "museval":
            raise RuntimeError("ffmpeg or ffprobe could not be found! Please install them before using stempeg.")
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="ffmpeg or ffprobe could not be found; install ffmpeg"):
        import_museval()


# --- bleedless and fullness


def by_librosa(reference, estimate, rate):
    """The public definition, with librosa for the STFT and the dB."""
    spectra = [
        np.abs(librosa.stft(audio, n_fft=4096, hop_length=1024, window="hann", center=True, pad_mode="constant"))
        for audio in (reference.astype(np.float64), estimate.astype(np.float64))
    ]
    filters = librosa.filters.mel(sr=rate, n_fft=4096, n_mels=512)
    before, after = (
        librosa.amplitude_to_db(filters @ spectrum, ref=1.0, amin=1e-10, top_db=80.0) for spectrum in spectra
    )
    d = after - before
    more, less = d[d > 0], d[d < 0]
    return 100 / (1 + (more.mean() if more.size else 0)), 100 / (1 - (less.mean() if less.size else 0))


@pytest.mark.filterwarnings("ignore:Empty filters", "ignore:n_fft=4096 is too large")
@pytest.mark.parametrize("rate", [44100, 8000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.1, 2.0, 37.0])
def test_bleedless_and_fullness_equal_the_public_definition(rate, channels, seconds):
    reference = noise(0, seconds, channels=channels)
    reference[:, : reference.shape[1] // 5] = 0
    estimate = 0.8 * reference + noise(1, seconds, 0.01, channels)
    estimate[:, -reference.shape[1] // 4 :] *= 0.01
    ours = bleedless_fullness(reference, estimate, sample_rate=rate)
    np.testing.assert_allclose(ours, by_librosa(reference, estimate, rate), rtol=1e-4)


def test_bleedless_and_fullness_at_their_limits():
    assert bleedless_fullness(noise(0), noise(0)) == (100, 100)
    assert bleedless_fullness(noise(0), 2 * noise(0)) == pytest.approx((100 / (1 + 20 * math.log10(2)), 100), rel=1e-4)
    assert bleedless_fullness(noise(0), noise(0) / 2) == pytest.approx((100, 100 / (1 + 20 * math.log10(2))), rel=1e-4)
    bleedless, fullness = bleedless_fullness(noise(0), np.zeros_like(noise(0)))
    assert bleedless == 100
    assert fullness < 1
    assert np.isnan(bleedless_fullness(np.zeros_like(noise(0)), noise(0))).all()


# --- leakage


def test_leakage_is_the_level_in_the_pauses_of_the_reference():
    reference, mixture = noise(0, 4.0), noise(1, 4.0)
    reference[:, RATE : 3 * RATE] = 0
    estimate = reference + 0.1 * mixture
    assert leakage_db(reference, estimate, mixture, sample_rate=RATE) == pytest.approx(-20, abs=1e-4)
    estimate[:, : 2 * RATE] = reference[:, : 2 * RATE]  # half of the pause is clean
    quiet, loud = (np.sum(mixture[:, a * RATE : (a + 1) * RATE].astype(np.float64) ** 2) for a in (1, 2))
    expected = -20 + 10 * math.log10(loud / (quiet + loud))
    assert leakage_db(reference, estimate, mixture, sample_rate=RATE) == pytest.approx(expected, abs=1e-4)


def test_leakage_takes_dither_for_silence_but_not_quiet_music():
    mixture = noise(1, 2.0)
    for peak, expected in ((2**-15, -20.0), (1e-3, math.nan)):
        reference = np.random.default_rng(0).uniform(-peak, peak, mixture.shape).astype(np.float32)
        leakage = leakage_db(reference, 0.1 * mixture, mixture, sample_rate=RATE)
        assert leakage == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_leakage_counts_the_shorter_half_second_at_the_end():
    reference, mixture = noise(0, 2.7), noise(1, 2.7)
    reference[:, round(2.5 * RATE) :] = 0
    assert leakage_db(reference, 0.1 * mixture, mixture, sample_rate=RATE) == pytest.approx(-20, abs=1e-4)


def test_leakage_at_its_limits():
    silence, mixture = np.zeros_like(noise(0)), noise(1)
    assert leakage_db(silence, mixture, mixture, sample_rate=RATE) == pytest.approx(0)
    assert leakage_db(silence, silence, mixture, sample_rate=RATE) == pytest.approx(-140)
    assert math.isnan(leakage_db(noise(0), mixture, mixture, sample_rate=RATE))  # never silent
    assert math.isnan(leakage_db(silence, silence, silence, sample_rate=RATE))  # nothing to leak
    short = noise(1, 0.1)
    assert leakage_db(np.zeros_like(short), 0.1 * short, short, sample_rate=RATE) == pytest.approx(-20, abs=1e-4)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (bleedless_fullness, "estimate"),
        (lambda a, b: leakage_db(a, b, a), "estimate"),
        (lambda a, b: leakage_db(a, a, b), "mixture"),
    ],
)
def test_bad_input_is_named(metric, name):
    with pytest.raises(InputError, match=rf"the shapes of reference \(2, 24000\) and {name} \(2, 23999\) differ"):
        metric(noise(0), noise(0)[:, 1:])
    broken = noise(0)
    broken[1, 17] = math.inf
    with pytest.raises(InputError, match=f"the {name} holds samples that are NaN or infinite"):
        metric(noise(0), broken)
