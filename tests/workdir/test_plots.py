"""The pictures of a training run: they are complete PNG files and show the values."""

import numpy as np
import pytest

from wroformer_jax.workdir import plots


def read(path):
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)[..., :3]


def tone(hz, seconds=2.0, rate=44100):
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave, wave]).astype(np.float32)


def test_spectrograms_show_where_a_tone_is(tmp_path):
    silence = np.zeros_like(tone(100))
    for hz in (200, 6000):
        plots.save_spectrograms(tmp_path / f"{hz}.png", {"a": silence, "b": tone(hz)}, sample_rate=44100)
    low, high = (read(tmp_path / f"{hz}.png") for hz in (200, 6000))
    assert low.shape == high.shape
    # Brightest row of the column in the middle of the second panel: higher in the picture for the higher tone.
    bottom = slice(int(0.55 * low.shape[0]), int(0.9 * low.shape[0]))
    column = int(0.4 * low.shape[1])
    low_row, high_row = (picture[bottom, column].sum(axis=-1).argmax() for picture in (low, high))
    assert high_row < low_row - 50


def test_spectrograms_of_silence_and_of_one_short_panel(tmp_path):
    plots.save_spectrograms(tmp_path / "s.png", {"silence": np.zeros((1, 500), np.float32)}, sample_rate=22050)
    assert read(tmp_path / "s.png").size


def test_pictures_of_one_song_share_their_brightest_level():
    loud, soft, silence = tone(1000), 0.1 * tone(1000), 0 * tone(1000)
    pictures = [plots.spectrogram_image(audio, sample_rate=44100, beside=loud) for audio in (loud, soft, silence)]
    assert {picture.shape for picture in pictures} == {(384, 2 * (1 + 88200 // 1024), 3)}
    assert all(picture.dtype == np.uint8 for picture in pictures)
    brightness = [int(picture.sum(axis=-1).max()) for picture in pictures]
    assert brightness[0] > brightness[1] > brightness[2]
    np.testing.assert_array_equal(pictures[2], pictures[2][:1, :1] + 0 * pictures[2])  # one colour only


@pytest.mark.parametrize(
    ("loss", "sdr"),
    [
        ([(i, 10.0 / (1 + i)) for i in range(50)], [(0, -1.0), (50, 7.0)]),
        ([(4, 1.3)], [(0, 0.1)]),
        ([], []),
    ],
)
def test_curves(tmp_path, loss, sdr):
    plots.save_curves(tmp_path / "c.png", loss=loss, sdr=sdr, mixture_sdr=-5.0)
    assert read(tmp_path / "c.png").shape[1] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_curves_depend_on_the_values(tmp_path):
    for name, top in (("a", 7.0), ("b", 2.0)):
        plots.save_curves(tmp_path / name, loss=[(0, 3.0), (9, 1.0)], sdr=[(0, 0.0), (9, top)], mixture_sdr=-5.0)
    assert not np.array_equal(read(tmp_path / "a"), read(tmp_path / "b"))


def test_a_picture_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    plots.save_curves(path, loss=[], sdr=[], mixture_sdr=0.0)
    before = path.read_bytes()
    from matplotlib.figure import Figure

    def half_written(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        plots.save_curves(path, loss=[], sdr=[], mixture_sdr=1.0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
