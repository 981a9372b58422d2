"""Audio files: reading in blocks, refusing bad files, resampling, and writing the files of a song."""

import contextlib
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from support.separation_models import limited_file_size, noise, tone

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import inspect, read_blocks, resample_blocks
from wroformer_jax.io.audio_headers import is_mp3_of_unknown_length, promised_bytes
from wroformer_jax.io.audio_writer import ENCODINGS, SongWriter

READABLE = {
    "song.wav": ("WAV", "PCM_16"),
    "song24.wav": ("WAV", "PCM_24"),
    "songf.wav": ("WAV", "FLOAT"),
    "long.wav": ("RF64", "PCM_16"),
    "song.flac": ("FLAC", "PCM_16"),
    "song.ogg": ("OGG", "VORBIS"),
    "song.mp3": ("MP3", "MPEG_LAYER_III"),
    "song.aiff": ("AIFF", "PCM_16"),
}


def make(path, samples=30011, channels=2, sample_rate=44100):
    container, subtype = READABLE[path.name]
    sound = tone(channels, samples, sample_rate)
    soundfile.write(path, sound.T, sample_rate, format=container, subtype=subtype)
    return sound


def whole(path, **kwargs):
    return np.concatenate(list(read_blocks(path, **kwargs)), axis=1)


def cut(samples, *, every):
    return [samples[:, i : i + every] for i in range(0, samples.shape[1], every)]


# --- reading


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_every_format_in_blocks(tmp_path, name, channels):
    sound = make(tmp_path / name, channels=channels)
    info = inspect(tmp_path / name)
    assert (info.sample_rate, info.channels, info.samples) == (44100, channels, sound.shape[1])
    blocks = list(read_blocks(tmp_path / name, 1000))
    assert all(block.dtype == np.float32 and block.shape[0] == channels for block in blocks)
    assert max(block.shape[1] for block in blocks) <= 1000
    read = np.concatenate(blocks, axis=1)
    assert read.shape == sound.shape
    at_once, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    lossy = name.endswith((".ogg", ".mp3"))
    np.testing.assert_allclose(read, at_once.T, atol=1e-6)
    np.testing.assert_allclose(read, sound, atol=0.05 if lossy else 1e-4)


def test_a_wav_from_a_pipe_that_does_not_know_its_size_is_read(tmp_path):
    sound = make(tmp_path / "song.wav")
    data = bytearray((tmp_path / "song.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    (tmp_path / "song.wav").write_bytes(data)
    assert whole(tmp_path / "song.wav").shape == sound.shape


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_is_reported(tmp_path, name, part):
    make(tmp_path / name, samples=200_000)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=f"{name} is truncated: .*get a whole copy"):
        inspect(tmp_path / name)
    with pytest.raises(InputError, match="truncated"):
        whole(tmp_path / name)


def test_an_mp3_that_loses_its_end_behind_tags_is_truncated_too(tmp_path):
    make(tmp_path / "song.mp3")
    data = (tmp_path / "song.mp3").read_bytes()
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, 7, 104]) + bytes(1000) + data  # 7 * 128 + 104 = 1000 bytes of tag
    (tmp_path / "song.mp3").write_bytes(tagged)
    assert whole(tmp_path / "song.mp3").shape == (2, 30011)
    (tmp_path / "song.mp3").write_bytes(tagged[:-500])
    with pytest.raises(InputError, match="truncated"):
        inspect(tmp_path / "song.mp3")


@pytest.mark.parametrize(
    ("index", "stream_bytes"),
    [
        (b"Xing" + struct.pack(">III", 3, 100, 5000), 5000),
        (b"Info" + struct.pack(">II", 2, 5000), 5000),
        (b"Info" + struct.pack(">II", 1, 100), None),
        (b"VBRI" + bytes(6) + struct.pack(">II", 5000, 100), 5000),
        (b"", None),
    ],
)
def test_the_indices_of_mp3_encoders(tmp_path, index, stream_bytes):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 0, 100]) + bytes(100)
    frame = b"\xff\xfb\x90\x64" + bytes(32) + index  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz
    path = tmp_path / "song.mp3"
    path.write_bytes(tag + bytes(7) + frame.ljust(417, b"\0") + b"\xff\xfb\xa0\x64" + bytes(500))
    assert promised_bytes(path) == (0 if stream_bytes is None else len(tag) + 7 + stream_bytes)
    assert is_mp3_of_unknown_length(path) == (index == b"")


def without_first_frame(path, bitrate_mode):
    """Writes an mp3 as if recorded from a stream: without the first frame, which holds the index."""
    sound = tone(2, 200_000, 44100) + noise(2, 200_000, peak=0.05)
    with soundfile.SoundFile(path, "w", 44100, 2, bitrate_mode=bitrate_mode, compression_level=0.4) as file:
        file.write(sound.T)
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\xff\xfb", 4) :])


def test_an_mp3_without_an_index_is_read_if_its_length_is_certain(tmp_path):
    without_first_frame(tmp_path / "song.mp3", "CONSTANT")
    assert whole(tmp_path / "song.mp3").shape[1] == pytest.approx(200_000, abs=3000)


def test_an_mp3_without_an_index_that_libsndfile_would_cut_short_is_refused(tmp_path):
    without_first_frame(tmp_path / "song.mp3", "VARIABLE")
    assert soundfile.info(tmp_path / "song.mp3").frames < 150_000  # so libsndfile would cut it short
    with pytest.raises(InputError, match=r"song\.mp3 does not say how long it is"):
        inspect(tmp_path / "song.mp3")


def test_a_flac_that_does_not_say_its_length_is_refused(tmp_path):
    make(tmp_path / "song.flac")
    data = bytearray((tmp_path / "song.flac").read_bytes())
    data[21] &= 0xF0  # 36 bits of STREAMINFO count the samples; encoders that write to a pipe leave them 0
    data[22:26] = bytes(4)
    (tmp_path / "song.flac").write_bytes(data)
    with pytest.raises(InputError, match=r"song\.flac does not say how long it is"):
        inspect(tmp_path / "song.flac")


def test_damage_inside_is_reported_with_its_place(tmp_path):
    make(tmp_path / "song.flac", samples=200_000)
    data = bytearray((tmp_path / "song.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "song.flac").write_bytes(data)
    with pytest.raises(InputError, match=r"song\.flac is damaged at 0:0\d\.\d+"):
        whole(tmp_path / "song.flac", block_samples=4410)


@pytest.mark.parametrize("name", ["song.wav", "song.mp3", "song.flac", "song.raw"])
def test_text_is_not_audio(tmp_path, name):
    (tmp_path / name).write_text("I am a text, whatever my name says.\n" * 500)
    with pytest.raises(InputError, match=f"{name} is not audio that can be read: expected a whole wav"):
        inspect(tmp_path / name)


def test_missing_empty_folder_and_unusable_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.wav cannot be read: No such file"):
        inspect(tmp_path / "nowhere.wav")
    with pytest.raises(InputError, match=r"x\.wav cannot be read: File name too long"):
        inspect(tmp_path / ("x" * 300 + ".wav"))
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InputError, match=r"empty\.wav is empty \(0 bytes\)"):
        inspect(tmp_path / "empty.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InputError, match=r"folder\.wav is not a file"):
        inspect(tmp_path / "folder.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 44100)
    with pytest.raises(InputError, match=r"none\.wav has no samples"):
        inspect(tmp_path / "none.wav")
    soundfile.write(tmp_path / "surround.wav", np.zeros((100, 6)), 44100)
    with pytest.raises(InputError, match=r"surround\.wav has 6 channels: mix it down"):
        inspect(tmp_path / "surround.wav")
    soundfile.write(tmp_path / "song.au", np.zeros((100, 2)), 44100)
    with pytest.raises(InputError, match=r"song\.au is a AU file: expected a whole wav"):
        inspect(tmp_path / "song.au")


def test_no_permission_is_reported(tmp_path, monkeypatch):
    make(tmp_path / "song.wav")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # root may read everything, and tests may run as root
    with pytest.raises(InputError, match=r"song\.wav cannot be read: Permission denied"):
        inspect(tmp_path / "song.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_reported_with_their_place(tmp_path, bad):
    sound = tone(2, 50_000, 44100)
    sound[1, 44100] = bad
    soundfile.write(tmp_path / "song.wav", sound.T, 44100, subtype="FLOAT")
    with pytest.raises(InputError, match=r"song\.wav has NaN or infinite samples, the first at 0:01\.000"):
        whole(tmp_path / "song.wav", block_samples=1000)


# --- resampling


@pytest.mark.parametrize(
    ("in_rate", "out_rate"),
    [(8000, 44100), (22050, 44100), (48000, 44100), (96000, 44100), (44100, 8000), (44100, 48000), (44100, 96000)],
)
@pytest.mark.parametrize(("samples", "every"), [(1, 10), (777, 100), (60_013, 4096), (60_013, 10**9)])
def test_resampling_in_blocks_is_resampling_at_once(in_rate, out_rate, samples, every):
    sound = noise(2, samples)
    blocks = list(resample_blocks(cut(sound, every=every), in_rate, out_rate))
    got = np.concatenate(blocks, axis=1) if blocks else np.zeros((2, 0), np.float32)
    expected = soxr.resample(sound.T, in_rate, out_rate, quality="VHQ").T
    assert got.shape == expected.shape
    assert abs(got.shape[1] - samples * out_rate / in_rate) <= 0.5
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_equal_rates_are_left_alone():
    blocks = cut(noise(2, 1000), every=99)
    assert all(a is b for a, b in zip(resample_blocks(blocks, 8000, 8000), blocks, strict=True))


# --- writing


def writer_for(tmp_path, encoding="wav24", samples=30_000, names=("vocals", "rest"), channels=2, sample_rate=44100):
    encoding = ENCODINGS[encoding]
    paths = {name: tmp_path / "out" / "song" / f"{name}{encoding.suffix}" for name in names}
    return SongWriter(paths, sample_rate=sample_rate, channels=channels, samples=samples, encoding=encoding), paths


def left_behind(tmp_path):
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read_back(tmp_path, encoding, channels):
    sound = noise(channels, 30_011)
    writer, paths = writer_for(tmp_path, encoding, channels=channels, sample_rate=48000)
    with writer:
        for block in cut(sound, every=7000):
            writer.write({"vocals": block, "rest": -block})
    assert left_behind(tmp_path / "out" / "song") == sorted(path.name for path in paths.values())
    info = soundfile.info(paths["vocals"])
    expected = ENCODINGS[encoding]
    assert (info.format, info.subtype, info.samplerate) == (expected.container, expected.subtype, 48000)
    step = 0 if expected.is_float else 0.5 / 2 ** (expected.bits - 1)
    np.testing.assert_allclose(whole(paths["vocals"]), sound, rtol=0, atol=step)
    np.testing.assert_allclose(whole(paths["rest"]), -sound, rtol=0, atol=step)


@pytest.mark.parametrize(("encoding", "bits"), [("wav16", 16), ("flac16", 16), ("wav24", 24), ("flac24", 24)])
def test_integer_samples_survive_bit_by_bit(tmp_path, encoding, bits):
    scale = 2 ** (bits - 1)
    integers = np.random.default_rng(0).integers(-scale, scale, (2, 5000))
    integers[:, :2] = -scale, scale - 1
    writer, paths = writer_for(tmp_path, encoding, names=["vocals"])
    with writer:
        writer.write({"vocals": (integers / scale).astype(np.float32)})
    np.testing.assert_array_equal(whole(paths["vocals"]) * scale, integers)
    assert writer.clipped() == {}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_over_full_scale_is_held_there_and_told(tmp_path, encoding):
    loud = np.array([[0.5, 2.0, -2.0, 1.0]], np.float32)
    writer, paths = writer_for(tmp_path, encoding, channels=1)
    with writer:
        writer.write({"vocals": loud, "rest": 0.1 * loud})
    read = whole(paths["vocals"])
    if ENCODINGS[encoding].is_float:
        np.testing.assert_array_equal(read, loud)
        assert writer.clipped() == {}
    else:
        np.testing.assert_allclose(read, [[0.5, 1, -1, 1]], atol=4e-5)
        assert writer.clipped() == pytest.approx({"vocals": 6.02}, abs=0.01)


def test_a_wav_over_four_gigabytes_is_an_rf64(tmp_path):
    sound = noise(2, 30_000)
    writer, paths = writer_for(tmp_path, "wav16", samples=2**30)  # announced, of 4 bytes each
    with writer:
        writer.write({"vocals": sound, "rest": sound})
    assert paths["vocals"].read_bytes()[:4] == b"RF64"
    np.testing.assert_allclose(whole(paths["vocals"]), sound, atol=2e-5)


def test_the_header_of_a_long_rf64_is_understood(tmp_path):
    path = tmp_path / "long.wav"
    make(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"ds64") + 16  # the size of the samples in 64 bits
    data[at : at + 8] = struct.pack("<Q", 5 * 2**30)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"at least 5,368,\d+,\d+ bytes"):
        inspect(path)


def interrupted(writer, paths, tmp_path):
    with writer:
        writer.write({"vocals": noise(2, 100), "rest": noise(2, 100)})
        assert len(left_behind(tmp_path / "out" / "song")) >= 2  # the temporary files
        assert not any(path.exists() and path.read_text() != "old" for path in paths.values())
        raise KeyboardInterrupt


def test_nothing_appears_before_the_end_and_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(*writer_for(tmp_path), tmp_path)
    assert left_behind(tmp_path) == []


def test_an_error_leaves_the_old_file_alone(tmp_path):
    writer, paths = writer_for(tmp_path)
    paths["vocals"].parent.mkdir(parents=True)
    paths["vocals"].write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(writer, paths, tmp_path)
    assert left_behind(tmp_path) == ["out", "out/song", "out/song/vocals.wav"]
    assert paths["vocals"].read_text() == "old"


def write_much(writer):
    with writer:
        for seed in range(30):
            writer.write({"vocals": noise(2, 10_000, seed), "rest": noise(2, 10_000, seed)})


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, encoding):
    writer, _ = writer_for(tmp_path, encoding)
    message = r"\.\w+ cannot be written \(.*MiB of disk are free\): make room"
    with limited_file_size(), pytest.raises(InputError, match=message):
        write_much(writer)
    assert left_behind(tmp_path) == []


def fill_up_at_the_end(writer, folder):
    with writer:
        (temporary,) = folder.glob(".vocals*")
        while temporary.stat().st_size < 100_000:
            writer.write({"vocals": noise(2, 1000, peak=1.0)})
        writer.write({"vocals": noise(2, 4000, peak=1.0)})
        # From here on, the encoder cannot write the samples that it still holds.
        hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (temporary.stat().st_size, hard_limit))


def test_a_disk_that_fills_up_while_closing_is_noticed(tmp_path):
    """A FLAC encoder writes its last samples when it is closed, and libsndfile does not report if that fails."""
    writer, paths = writer_for(tmp_path, "flac16", names=["vocals"])
    with limited_file_size(), pytest.raises(InputError, match="not whole"):
        fill_up_at_the_end(writer, paths["vocals"].parent)
    assert left_behind(tmp_path) == []


def test_a_directory_in_the_place_of_a_file_is_found_before_anything_is_written(tmp_path):
    writer, paths = writer_for(tmp_path)
    paths["rest"].mkdir(parents=True)
    with pytest.raises(InputError, match=r"rest\.wav cannot be written: it is a directory"), writer:
        pytest.fail("a song would have been separated for nothing")
    assert left_behind(tmp_path) == ["out", "out/song", "out/song/rest.wav"]


def write_song(writer, before_the_end=contextlib.nullcontext):
    with writer:
        writer.write({"vocals": noise(2, 100), "rest": noise(2, 100)})
        before_the_end()


def test_a_directory_that_appears_meanwhile_leaves_no_stem_without_the_others(tmp_path):
    writer, paths = writer_for(tmp_path)
    with pytest.raises(InputError, match="it is a directory"):
        write_song(writer, before_the_end=paths["rest"].mkdir)
    assert left_behind(tmp_path) == ["out", "out/song", "out/song/rest.wav"]


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), KeyboardInterrupt()])
def test_a_rename_that_fails_leaves_whole_files_only(tmp_path, monkeypatch, error):
    writer, paths = writer_for(tmp_path)
    paths["vocals"].parent.mkdir(parents=True)
    paths["rest"].write_text("old")
    rename = Path.replace

    def refuse_the_last(source, destination):
        if source.name.startswith(".rest"):
            raise error
        return rename(source, destination)

    monkeypatch.setattr(Path, "replace", refuse_the_last)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_song(writer)
    assert left_behind(paths["vocals"].parent) == ["rest.wav", "vocals.wav"]
    assert whole(paths["vocals"]).shape == (2, 100)
    assert paths["rest"].read_text() == "old"


def test_files_that_are_replaced_leave_nothing(tmp_path):
    for seed in range(2):
        writer, paths = writer_for(tmp_path)
        with writer:
            writer.write({"vocals": noise(2, 100, seed), "rest": noise(2, 100, seed)})
    assert left_behind(paths["vocals"].parent) == ["rest.wav", "vocals.wav"]
    np.testing.assert_allclose(whole(paths["rest"]), noise(2, 100, 1), atol=1e-6)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    writer, _ = writer_for(tmp_path)
    with pytest.raises(InputError, match=r"vocals\.wav cannot be written: Not a directory"), writer:
        pass
    assert left_behind(tmp_path) == ["out"]


def test_a_sample_rate_that_the_format_refuses_is_reported(tmp_path):
    writer, _ = writer_for(tmp_path, "flac16", sample_rate=2_000_000)
    with pytest.raises(InputError, match="cannot be written"), writer:
        pass
    assert left_behind(tmp_path) == []
