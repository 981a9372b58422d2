"""Separation: the overlap-add against that of the public tools, streams against arrays, and errors."""

import dataclasses
import itertools
import re
import sys

import jax
import numpy as np
import pytest
from support.separation_models import SMALL_STFT, GainModel, TracedModel, noise, tiny_real_model, tone

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model import trial
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.separation import stream
from wroformer_jax.separation.arrays import separate
from wroformer_jax.separation.forward import WHOLE_PLACES, in_pieces
from wroformer_jax.separation.progress import real_time_factor, with_progress
from wroformer_jax.separation.stream import check_count, chunk_samples, separate_blocks, stem_names

RATE = 1000  # sample rate of the small model in Hz; a chunk of 0.25 s has 256 samples, 16 hops
LENGTHS = [1, 17, 100, 256, 257, 512, 513, 2048, 3001]  # samples


def public_demix(apply, mixture, *, chunk, overlap):
    """The overlap-add of the public tools, written for whole arrays: the reference for the streams."""
    step, fade, samples = chunk // overlap, chunk // 10, mixture.shape[-1]
    border = chunk - step
    reflected = samples > 2 * border > 0
    if reflected:
        mixture = np.pad(mixture, ((0, 0), (border, border)), mode="reflect")
    length = mixture.shape[-1]
    total, weights = 0.0, np.zeros(length)
    for start in range(0, length, step):
        cut = mixture[:, start : start + chunk]
        mode = "reflect" if cut.shape[-1] > chunk // 2 else "constant"
        estimate = apply(np.pad(cut, ((0, 0), (0, chunk - cut.shape[-1])), mode=mode))
        window = np.ones(chunk)
        if start > 0:
            window[:fade] = np.linspace(0, 1, fade)
        if start + step < length:
            window[-fade:] = np.linspace(1, 0, fade)
        placed = np.zeros((*estimate.shape[:-1], length + chunk))
        placed[..., start : start + chunk] = estimate * window
        total = total + placed[..., :length]
        weights[start : start + chunk] += window[: length - start]
    result = total / weights
    return result[..., border : border + samples] if reflected else result


def in_blocks(mixture, *sizes):
    return np.split(mixture, np.cumsum(sizes, dtype=int), axis=1)


def joined(blocks):
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in blocks[0]}


# --- a model that returns its input


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_weights_add_up(batch_size):
    model = GainModel()
    settings = {"sample_rate": RATE, "chunk_seconds": 0.25, "batch_size": batch_size}
    for overlap, samples in itertools.product([1, 2, 3, 4, 7], LENGTHS):
        mixture = noise(2, samples)
        stems = separate(model, model.params(), mixture, overlap=overlap, **settings)
        assert stems["vocals"].dtype == np.float32
        np.testing.assert_allclose(stems["vocals"], mixture, rtol=1e-6, atol=1e-7, err_msg=f"{overlap=} {samples=}")
        np.testing.assert_array_equal(stems["instrumental"], mixture - stems["vocals"])
    assert model.traced_shapes == [(batch_size, 2, 256)]  # compiled once for all songs and for partial batches


@pytest.mark.parametrize("samples", LENGTHS)
def test_in_one_pass(samples):
    model, mixture = GainModel(), noise(2, samples)
    stems = separate(model, model.params(0.5), mixture, sample_rate=RATE, chunk_seconds=None)
    np.testing.assert_array_equal(stems["vocals"], 0.5 * mixture)
    ((_, _, padded),) = model.traced_shapes
    assert padded % 16 == 0
    assert 0 <= padded - max(samples, model.config.min_samples) < 16


@pytest.mark.parametrize("model_channels", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("chunk_seconds", [0.25, None])
@pytest.mark.parametrize("tta", [False, True])
def test_mono_and_stereo_in_either_model(model_channels, channels, chunk_seconds, tta):
    model, mixture = GainModel(channels=model_channels), noise(channels, 1001)
    stems = separate(
        model, model.params(0.5), mixture, sample_rate=RATE, chunk_seconds=chunk_seconds, batch_size=2, tta=tta
    )
    np.testing.assert_allclose(stems["vocals"], 0.5 * mixture, rtol=1e-6, atol=1e-7)


def test_mono_is_the_average_of_what_a_stereo_model_gives():
    model, mixture = GainModel(), noise(1, 1001)
    params = {"gains": np.array([[[0.25], [0.75]]], np.float32)}  # (stem, channel, 1)
    stems = separate(model, params, mixture, sample_rate=RATE, chunk_seconds=None)
    np.testing.assert_allclose(stems["vocals"], 0.5 * mixture, rtol=1e-6)


@pytest.mark.slow
def test_one_pass_accepts_any_memory_settings():
    """A trained model may have settings that contradict the pieces of one pass."""
    model, params = tiny_real_model()
    mixture = noise(2, 4000)
    expected = separate(model, params, mixture, sample_rate=8000, chunk_seconds=None)["vocals"]
    for memory in ({"remat": "dots"}, {"remat": "offload"}, {"places_at_once": 60}):
        trained = type(model)(dataclasses.replace(model.config, **memory))
        found = separate(trained, params, mixture, sample_rate=8000, chunk_seconds=None)["vocals"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    deep = dataclasses.replace(model.config, depth=2, remat="block", blocks_per_save=2)
    assert dataclasses.replace(deep, remat="none", blocks_per_save=1, places_at_once=WHOLE_PLACES) == in_pieces(deep)


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("chunk_seconds", [0.25, None])
def test_other_rates_keep_the_length_and_the_position(sample_rate, chunk_seconds):
    model = GainModel(sample_rate=44100, stft_n_fft=2048, stft_win_length=2048, stft_hop_length=441)
    for samples in (1, 4001, 60_013):
        mixture = tone(2, samples, sample_rate)
        stems = separate(model, model.params(), mixture, sample_rate=sample_rate, chunk_seconds=chunk_seconds)
        assert stems["vocals"].shape == mixture.shape
        np.testing.assert_array_equal(stems["instrumental"], mixture - stems["vocals"])
        if samples > 1:  # the tone is band-limited, so resampling there and back keeps it
            np.testing.assert_allclose(stems["vocals"], mixture, atol=5e-4)


# --- the public tools, with a model whose output depends on where a chunk begins


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_overlap_add_is_that_of_the_public_tools(batch_size):
    model = GainModel(ramp=True, stems=("vocals", "drums"))
    params, apply = model.params(1.0, 0.5), jax.jit(model.apply)
    settings = {"sample_rate": RATE, "chunk_seconds": 0.25, "batch_size": batch_size}

    def of_chunk(chunk):
        return np.asarray(apply({"params": params}, chunk[None]))[0]

    for overlap, samples in itertools.product([2, 3, 4], LENGTHS):
        mixture = noise(2, samples)
        expected = public_demix(of_chunk, mixture, chunk=256, overlap=overlap)
        stems = separate(model, params, mixture, overlap=overlap, **settings)
        assert list(stems) == ["vocals", "drums"]
        np.testing.assert_allclose(stems["vocals"], expected[0], atol=1e-6, err_msg=f"{overlap=} {samples=}")
        np.testing.assert_allclose(stems["drums"], expected[1], atol=1e-6, err_msg=f"{overlap=} {samples=}")


# --- streams


@pytest.mark.parametrize("sample_rate", [RATE, 1600])
@pytest.mark.parametrize("chunk_seconds", [0.25, None])
def test_how_a_stream_is_cut_does_not_matter(sample_rate, chunk_seconds):
    model, mixture = GainModel(ramp=True), noise(2, 3001)
    settings = {"sample_rate": sample_rate, "chunk_seconds": chunk_seconds, "batch_size": 2}
    at_once = separate(model, model.params(), mixture, **settings)
    for sizes in [(), (1, 2, 3), (1000,) * 3, (1,) * 700]:
        blocks = in_blocks(mixture, *sizes)
        streamed = joined(separate_blocks(model, model.params(), blocks, **settings))
        np.testing.assert_allclose(streamed["vocals"], at_once["vocals"], atol=1e-6)
        np.testing.assert_array_equal(streamed["instrumental"], mixture - streamed["vocals"])


@pytest.mark.parametrize("sample_rate", [RATE, 1600])
def test_an_endless_stream_needs_only_a_few_chunks(sample_rate):
    model, chunk_seconds, batch_size, read, written = GainModel(), 0.25, 2, 0, 0

    def endless():
        nonlocal read
        while True:
            read += 100
            yield noise(2, 100)

    stems = separate_blocks(
        model, model.params(), endless(), sample_rate=sample_rate, chunk_seconds=chunk_seconds, batch_size=batch_size
    )
    for block in stems:
        written += block["vocals"].shape[-1]
        # A batch covers (batch_size + 1) / 2 chunks; the border and the blocks add to that.
        assert read - written <= 4 * chunk_seconds * sample_rate
        if written > 50 * chunk_seconds * sample_rate:
            break


def test_an_empty_stream_has_no_stems():
    model = GainModel()
    assert list(separate_blocks(model, model.params(), [], sample_rate=RATE)) == []


# --- the real model


@pytest.fixture
def tiny():
    return tiny_real_model()


def test_a_real_model_in_one_pass_is_apply(tiny):
    model, params = tiny
    mixture = noise(2, 4000)
    expected = jax.jit(model.apply)({"params": params}, mixture[None])[0, 0]
    stems = separate(model, params, mixture, sample_rate=8000, chunk_seconds=None)
    np.testing.assert_allclose(stems["vocals"], expected, atol=1e-5)
    assert np.abs(stems["vocals"]).max() > 1e-4  # the comparison is not one of silences


def test_a_real_model_is_compiled_once_for_songs_of_any_length(tiny):
    model, params = tiny
    traced = TracedModel(model)
    for samples in (1, 100, 9001, 20_000):
        stems = separate(traced, params, noise(2, samples), sample_rate=8000, chunk_seconds=0.5)
        assert stems["vocals"].shape == (2, samples)
    assert traced.traced_shapes == [(1, 2, 4000)]


def test_a_real_model_with_augmentation_is_the_average(tiny):
    model, params = tiny
    mixture = noise(2, 4000)

    def vocals(mixture):
        return separate(model, params, mixture, sample_rate=8000, chunk_seconds=None)["vocals"]

    expected = (vocals(mixture) - vocals(-mixture) + vocals(mixture[::-1])[::-1]) / 3
    stems = separate(model, params, mixture, sample_rate=8000, chunk_seconds=None, tta=True)
    np.testing.assert_allclose(stems["vocals"], expected, atol=1e-6)
    assert np.abs(expected - vocals(mixture)).max() > 1e-4


# --- names, progress, errors


def test_stem_names():
    assert stem_names(ModelConfig()) == ("vocals", "instrumental")
    assert stem_names(ModelConfig(stems=("instrumental",))) == ("instrumental", "vocals")
    assert stem_names(ModelConfig(stems=("drums", "bass"))) == ("drums", "bass")


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_shown_and_changes_nothing(capsys, monkeypatch, on_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    model, mixture = GainModel(), noise(2, 3000)
    stems = separate(model, model.params(), mixture, sample_rate=RATE, chunk_seconds=0.25, progress=True)
    np.testing.assert_allclose(stems["vocals"], mixture, rtol=1e-6, atol=1e-7)
    shown = capsys.readouterr().err
    assert ("separate: 100%|" in shown) == ("x real time" in shown) == on_terminal  # a bar would be noise in a log
    assert real_time_factor(24.6, 2.0) == "12.3x real time"
    assert list(with_progress([], samples=1, sample_rate=1, label="none")) == []


def test_a_log_gets_lines_of_progress(capsys, monkeypatch):
    monkeypatch.setattr("time.perf_counter", itertools.count(step=60).__next__)  # a minute between two looks at it
    model = GainModel()
    separate(model, model.params(), noise(2, 3000), sample_rate=RATE, chunk_seconds=0.25, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert re.fullmatch(r"separate: 100%, \d+\.\dx real time, about 0 min left", lines[-1])


def test_chunks_are_whole_hops():
    config = ModelConfig(stft_hop_length=512)
    assert chunk_samples(config, 8.0, 2) == 690 * 512
    assert chunk_samples(ModelConfig(), 8.0, 2) == 8 * 44100
    assert chunk_samples(config, None, 2) is None


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (np.zeros(100, np.float32), r"shape \(100,\), expected \(channels, samples\)"),
        (np.zeros((6, 100), np.float32), r"shape \(6, 100\)"),
        (np.zeros((100, 2), np.float32), r"shape \(100, 2\)"),
        (np.zeros((2, 0), np.float32), "no samples"),
        (np.zeros((2, 100), np.int16), "mixture is int16, expected floating point"),
        (np.full((2, 100), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_an_unusable_mixture_is_refused(mixture, message):
    model = GainModel()
    with pytest.raises(InputError, match=message):
        separate(model, model.params(), mixture, sample_rate=RATE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"overlap": 0}, "overlap is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"chunk_seconds": 0.01}, r"chunk_seconds is 0.01, expected at least 0.064"),
        ({"chunk_seconds": float("nan")}, "chunk_seconds is nan"),
        ({"chunk_seconds": 0.1, "overlap": 101}, "chunk_seconds is 0.1, expected at least 0.101"),
        ({"chunk_seconds": 1e12}, r"chunk_seconds is 1000000000000.0, expected at most 86400 \(a day\)"),
        (
            {"batch_size": 10**12},
            "batch_size is 1000000000000, expected at most 65536",
        ),
        ({"batch_size": 10**30}, "batch_size is 10+, expected at most 65536"),
    ],
)
def test_an_unusable_setting_is_refused(settings, message):
    model = GainModel()
    with pytest.raises(InputError, match=message):
        separate(model, model.params(), noise(2, 100), **{"sample_rate": RATE, **settings})


@pytest.mark.parametrize("value", [0, 1.5, float("nan"), float("inf"), "2", None])
def test_whole_numbers_are_checked(value):
    """`separate` would not get this far here: the tests check the types of its arguments first."""
    with pytest.raises(InputError, match=r"overlap is .*, expected a whole number of at least 1"):
        check_count("overlap", value)
    check_count("overlap", np.int64(2))


def test_a_float64_mixture_is_rounded_to_float32():
    model, mixture = GainModel(), noise(2, 500).astype(np.float64)
    assert separate(model, model.params(), mixture, sample_rate=RATE)["vocals"].dtype == np.float32


def test_damaged_weights_are_reported():
    model = GainModel()
    with pytest.raises(InputError, match="weights are damaged"):
        separate(model, model.params(np.nan), noise(2, 500), sample_rate=RATE)


@pytest.mark.parametrize(("chunk_seconds", "amount"), [(2.0, "3 x 2.0 s of audio"), (None, "the whole recording")])
def test_too_little_memory_on_the_device_is_one_sentence(chunk_seconds, amount):
    class Hungry(GainModel):
        def apply(self, variables, audio):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")

    model, settings = Hungry(), {"sample_rate": RATE, "chunk_seconds": chunk_seconds, "batch_size": 3}
    with pytest.raises(InputError, match=f"not enough memory for {amount} at once: use shorter chunks"):
        separate(model, model.params(), noise(2, 1000), **settings)


@pytest.mark.parametrize(
    ("function", "settings", "amount"),
    [
        ("zeros", {"chunk_seconds": 0.25, "batch_size": 4321}, "4321 x 0.3 s of audio"),
        ("pad", {"chunk_seconds": 2.0}, "1 x 2.0 s of audio"),
        ("pad", {"chunk_seconds": None}, "the whole recording"),
    ],
)
def test_too_little_memory_for_numpy_is_the_same_sentence(monkeypatch, function, settings, amount):
    model, mixture = GainModel(), noise(2, 1001)
    params = model.params()
    original = getattr(np, function)

    def limited(first, *args, **kwargs):
        if function == "pad" or np.size(first) > 1:  # np.zeros of a batch, which has more than one axis
            raise MemoryError("Unable to allocate 30.9 GiB for an array")
        return original(first, *args, **kwargs)

    monkeypatch.setattr(np, function, limited)
    with pytest.raises(InputError, match=f"not enough memory for {amount} at once: use shorter chunks"):
        separate(model, params, mixture, sample_rate=RATE, **settings)


def test_other_errors_of_the_model_are_not_hidden():
    class Broken(GainModel):
        def apply(self, variables, audio):
            raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel")

    model = Broken()
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such kernel"):
        separate(model, model.params(), noise(2, 1000), sample_rate=RATE)


def test_a_form_of_attention_is_tried_before_it_separates(monkeypatch, caplog):
    """The kernels' form fails on this device: the scan form separates, and a line says why."""

    def fail(config):
        raise RuntimeError("no such instruction")

    kernels = RoFormer(dataclasses.replace(SMALL_STFT, attention_impl="interpret"))
    monkeypatch.setattr(trial, "form_of", fail)
    monkeypatch.setattr(stream, "apply_model", lambda model, params, audio: used.append(model.config) or audio[:, None])
    used = []
    separate(kernels, {}, noise(2, RATE), sample_rate=RATE)
    assert {config.attention_impl for config in used} == {"scan"}
    [line] = [record.getMessage() for record in caplog.records if record.name == "wroformer"]
    assert line.endswith("it fails with RuntimeError: no such instruction")
