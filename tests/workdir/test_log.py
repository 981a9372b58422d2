"""The log of a run: its lines of progress, metrics.jsonl, and the sounds and pictures in TensorBoard."""

import json
import sys

import numpy as np
from support.event_files import events_in, picture_of, sound_of, steps_by_tag
from support.separation_models import GainModel, limited_file_size
from support.tiny_training import tiny_run

from wroformer_jax.evaluation.metrics import usdr
from wroformer_jax.evaluation.validation_songs import ValidationSong, separate_and_score
from wroformer_jax.workdir.excerpts import Excerpt, excerpt_of, loudest_start
from wroformer_jax.workdir.log import TrainingLog, progress_line, read_records

SCALARS = {"loss": 0.12345, "sdr": 5.678, "gradient_norm": 1.0}
RATES = {"seconds_per_step": 0.5, "data_wait": 0.021, "audio_seconds_per_second": 16.0}
SCORES = {"vocals_usdr": 3.0, "usdr": 3.0, "mixture_usdr": -4.0, "improvement": 7.0}


def tones(*frequencies, rate=16000, seconds=1.0, level=0.5):
    wave = [level * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate) for hz in frequencies]
    return np.stack(wave).astype(np.float32)


def an_excerpt(level=0.5):
    return Excerpt(16000, tones(300, 300), {"vocals": tones(2000, 2000)}, {"vocals": tones(2000, 500, level=level)})


# --- the line


def test_the_line_says_what_is_known():
    known = {**RATES, "mfu": 0.4123, "hbm_gib": 12.34}
    assert progress_line(SCALARS, known) == (
        "loss 0.1235, SDR 5.68 dB, 16 s of audio per second, 0.5 s per step, MFU 41.2%, 2% waiting for data, "
        "12.3 GiB of HBM"
    )
    assert progress_line(SCALARS, RATES) == (
        "loss 0.1235, SDR 5.68 dB, 16 s of audio per second, 0.5 s per step, 2% waiting for data"
    )


def test_in_a_file_each_record_is_a_line(tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 4) as log:
        log.train(2, SCALARS, RATES)
    assert capsys.readouterr().out == f"step 2/4: {progress_line(SCALARS, RATES)}\n"


def test_on_a_terminal_it_stands_beside_the_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with TrainingLog(tmp_path, 0, 4) as log:
        log.train(2, SCALARS, RATES)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/4" in err
    assert progress_line(SCALARS, RATES) in err


def test_the_clock_goes_to_tensorboard_and_not_to_the_records(tmp_path):
    with TrainingLog(tmp_path, 0, 4) as log:
        log.train(2, SCALARS, {**RATES, "mfu": 0.4, "hbm_gib": 12.0})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"kind": "train", "step": 2, **SCALARS}
    ]
    tags = steps_by_tag(tmp_path / "events", "simple_value")
    assert tags.keys() == {f"train/{name}" for name in SCALARS} | {
        f"speed/{name}" for name in (*RATES, "mfu", "hbm_gib")
    }


def test_a_line_that_is_being_written_is_no_record_yet(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    path.write_text('{"kind": "train", "step": 2, "loss": 1.0}\n{"kind": "train", "st')
    assert [record["step"] for record in read_records(path)] == [2]
    assert read_records(path, 1) == []


# --- excerpts


def test_an_excerpt_is_the_loudest_part():
    stems = np.zeros((2, 1, 1000), np.float32)
    stems[0, 0, 330:360] = 0.5
    stems[1, 0, 700:720] = 0.5
    assert loudest_start(stems, 100, grid=10) == 260  # the first of the places that have all of it
    stems[1, 0, 690:720] = 0.7
    assert loudest_start(stems, 100, grid=10) == 620
    assert loudest_start(np.zeros((1, 2, 1000), np.float32), 100, grid=10) == 0
    assert loudest_start(stems[..., :99], 100, grid=10) == 0


def test_an_excerpt_is_the_same_part_of_all():
    config = tiny_run(model={"stems": ["vocals", "drums"]}).model
    rng = np.random.default_rng(0)
    mixture, *stems = rng.standard_normal((5, 2, 12 * 16000), dtype=np.float32)
    targets, estimates = np.stack(stems[:2]), np.stack(stems[2:])
    targets[..., : 3 * 16000] = 0
    excerpt = excerpt_of(config, ValidationSong(mixture, targets), estimates)
    [start] = np.flatnonzero(mixture[0] == excerpt.mixture[0, 0])
    assert start >= 3 * 16000
    part = slice(start, start + 8 * 16000)
    np.testing.assert_array_equal(excerpt.mixture, mixture[:, part])
    for i, stem in enumerate(("vocals", "drums")):
        np.testing.assert_array_equal(excerpt.references[stem], targets[i, :, part])
        np.testing.assert_array_equal(excerpt.estimates[stem], estimates[i, :, part])
    other = excerpt_of(config, ValidationSong(mixture, targets), 0 * estimates)
    np.testing.assert_array_equal(other.mixture, excerpt.mixture)  # whatever the model makes of it


def test_a_short_song_is_its_own_excerpt():
    config = tiny_run().model
    song = ValidationSong(tones(300, 300), tones(200, 200)[None])
    assert excerpt_of(config, song, song.targets).mixture.shape == (2, 16000)


def test_a_validation_hands_on_the_estimates_that_it_scores():
    model = GainModel(sample_rate=16000)
    songs = [ValidationSong(tones(300, 300), tones(200 * i, 200 * i)[None]) for i in (1, 2, 3)]
    separated = []
    scores = [
        separate_and_score(
            model, model.params(0.5), song, chunk_seconds=None, on_separated=lambda *pair: separated.append(pair)
        )
        for song in songs
    ]
    assert len(separated) == 3  # once each
    for (song, estimates), expected, found in zip(separated, songs, scores, strict=True):
        assert song is expected
        np.testing.assert_allclose(estimates[0], 0.5 * song.mixture, atol=1e-6)
        assert found.estimates == [usdr(song.targets[0], estimates[0])]


def test_references_are_there_once_and_estimates_at_every_validation(tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 8) as log:
        log.validation(0, SCORES, [an_excerpt(), an_excerpt()])
        log.validation(4, SCORES, [an_excerpt(), an_excerpt()])
    with TrainingLog(tmp_path, 4, 8) as log:  # resumed
        log.validation(8, SCORES, [an_excerpt(), an_excerpt()])
    for kind, name in (("audio", "song_{}"), ("image", "song_{}_spectrogram")):
        assert steps_by_tag(tmp_path / "events", kind) == {
            f"{name.format(number)}/{what}": steps
            for number in (1, 2)
            for what, steps in (("vocals_estimate", [0, 4, 8]), ("vocals_reference", [0]), ("mixture", [0]))
        }


def test_what_is_heard_and_seen(tmp_path, capsys):
    excerpt = an_excerpt(level=1.5)
    with TrainingLog(tmp_path, 0, 8) as log:
        log.validation(0, SCORES, [excerpt])
    assert "clipped" not in "".join(capsys.readouterr())
    values = {value.tag: value for _, value in events_in(tmp_path / "events")}
    for tag, audio in (
        ("song_1/mixture", excerpt.mixture),
        ("song_1/vocals_reference", excerpt.references["vocals"]),
        ("song_1/vocals_estimate", np.clip(excerpt.estimates["vocals"], -1, 1)),
    ):
        heard, rate = sound_of(values[tag])
        assert rate == 16000
        np.testing.assert_allclose(heard, audio, atol=2**-15)
    low, high = (
        picture_of(values[f"song_1_spectrogram/{name}"]).sum(axis=(1, 2)).argmax()
        for name in ("mixture", "vocals_reference")
    )
    assert high < low - 20  # rows from the top: the higher tone stands higher


def test_a_full_disk_ends_nothing_and_what_is_not_written_is_written_later(tmp_path, caplog, capsys):
    """capsys, because the limit would also hold for the file to which pytest else writes the output."""
    with TrainingLog(tmp_path, 0, 8) as log:
        with limited_file_size(1):
            log.validation(0, SCORES)
            log.train(2, SCALARS, RATES)
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "cannot write the log of step 0 yet", "cannot write the log of step 2 yet",
        ]  # fmt: skip
        assert [record["step"] for record in log.records] == [0, 2]
        log.train(4, SCALARS, RATES)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [0, 2, 4]
    assert steps_by_tag(tmp_path / "events", "simple_value")["train/loss"][-1] == 4


def test_excerpts_on_a_full_disk_end_nothing(tmp_path, caplog, capsys):
    with TrainingLog(tmp_path, 0, 8) as log:
        with limited_file_size(20_000):  # room for the scores, not for the sounds
            log.validation(0, SCORES, [an_excerpt()])
        assert "cannot write the log of step 0 yet: [Errno 27]" in caplog.text
        log.train(2, SCALARS, RATES)
    assert [record["kind"] for record in read_records(tmp_path / "metrics.jsonl")] == ["validation", "train"]
