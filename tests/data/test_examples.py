"""Examples: the songs and starts that are drawn, and the rendered audio."""

import dataclasses
import itertools

import numpy as np
import pytest
from support.stored_songs import watch_records
from support.tiny_set import RATE, STEMS, five_songs, make_set, noise

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.data.augment import Change
from wroformer_jax.data.examples import Crop, Examples, parts_of_targets, whole_song
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.errors import InputError

NONE = Augmentation.none()
CROP = 1300  # samples, which lie in two or three segments of 1,000


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), five_songs())


def examples(record_set, **fields):
    defaults = {"stems": (), "targets": STEMS, "channels": 2, "crop_samples": CROP, "augmentation": NONE}
    return Examples(record_set, "train", **{**defaults, **fields})


def draws(made, number, seed=0):
    rng = np.random.default_rng(seed)
    return [made.draw(n % len(made), rng) for n in range(number)]


def silent_in_the_middle(number=3, seconds=12):
    """Returns songs whose vocals sound only in the first and last second."""
    songs = {f"song {n}": {"vocals": noise(n, seconds), "drums": noise(-n + 99, seconds)} for n in range(number)}
    for song in songs.values():
        song["vocals"][:, RATE:-RATE] = 0
    return songs


def test_crops_without_augmentation_are_the_stored_samples(record_set):
    made, songs = examples(record_set), list(five_songs().values())
    starts = set()
    for recipe in draws(made, 250):  # each has four stems
        batch = made.render([recipe])
        song, start = {(crop.song, crop.start) for crops in recipe for crop in crops}.pop()
        starts.add(start)
        stop = start + CROP
        for name, target in zip(STEMS, batch["targets"][0], strict=True):
            original = songs[song].get(name, np.zeros((2, 9000), np.float32))
            np.testing.assert_array_equal(target, original[:, start:stop])
        np.testing.assert_array_equal(batch["mixture"][0], batch["targets"][0].sum(axis=0))
    assert len(starts) > 50


def test_a_song_counts_by_its_length(record_set):
    made = examples(record_set, crop_samples=500)
    assert len(made) == 3 + 5 + 7 + 9 + 11
    songs = [recipe[0][0].song for recipe in draws(made, len(made))]
    assert np.bincount(songs).tolist() == [3, 5, 7, 9, 11]


def test_starts_are_uniform_from_the_first_to_the_last_possible(record_set):
    made = examples(record_set, crop_samples=1498)
    starts = [recipe[0][0].start for recipe in draws(made, 600) if recipe[0][0].song == 0]
    assert set(starts) == {0, 1, 2}
    assert np.bincount(starts).min() > len(starts) / 5


def test_a_song_shorter_than_the_crop_is_followed_by_silence(record_set):
    made = examples(record_set, crop_samples=4000)
    recipe = next(recipe for recipe in draws(made, 50) if recipe[0][0].song == 1)
    targets = made.render([recipe])["targets"][0]
    np.testing.assert_array_equal(targets[3, :, :2500], five_songs()["song 1"]["vocals"])
    assert not targets[:, :, 2500:].any()


def test_remix_takes_stems_from_different_songs_that_have_them(record_set):
    made = examples(record_set, augmentation=dataclasses.replace(NONE, remix=1.0))
    for recipe in draws(made, 200):
        songs = [crops[0].song for crops in recipe]
        assert len(set(songs)) > 1
        assert songs[1] != 4  # it has no drums
        assert len({crops[0].start for crops in recipe}) > 1
    half = examples(record_set, augmentation=dataclasses.replace(NONE, remix=0.5))
    together = [len({crop.song for crops in recipe for crop in crops}) == 1 for recipe in draws(half, 600)]
    assert np.mean(together) == pytest.approx(0.5, abs=0.08)


def test_remix_draws_songs_by_their_length(record_set):
    made = examples(record_set, augmentation=dataclasses.replace(NONE, remix=1.0), crop_samples=500)
    songs = [recipe[0][0].song for recipe in draws(made, 1400)]
    np.testing.assert_allclose(np.bincount(songs) / len(songs), np.array([3, 5, 7, 9, 11]) / 35, atol=0.06)


def test_remix_of_a_set_of_single_stems(tmp_path):
    songs = {"a": {"vocals": noise(0, 2)}, "b": {"drums": noise(1, 2)}, "c": {"drums": noise(2, 2)}}
    record_set = make_set(tmp_path, songs)
    made = examples(record_set, targets=("vocals",), augmentation=dataclasses.replace(NONE, remix=1.0))
    recipes = draws(made, 30)
    assert all(len(crops) == 1 for recipe in recipes for crops in recipe)
    assert {recipe[0][0].song for recipe in recipes} == {1, 2}


def test_mixup_adds_the_same_stem_of_another_song(record_set):
    made = examples(record_set, augmentation=dataclasses.replace(NONE, mixup=(1.0,), mixup_range=(1, 1)))
    songs = list(five_songs().values())
    recipe = draws(made, 1)[0]
    rendered = made.render([recipe])["targets"][0]
    for name, crops, target in zip(STEMS, recipe, rendered, strict=True):
        if crops:
            first, second = crops
            assert first.song != second.song
            parts = [songs[crop.song][name][:, crop.start : crop.start + CROP] / 2 for crop in crops]
            np.testing.assert_array_equal(target, parts[0] + parts[1])


def test_silence_silences_one_target_and_leaves_the_mixture_a_sum(record_set):
    augmentation = dataclasses.replace(NONE, silence=0.4)
    made = examples(record_set, targets=("vocals", "bass"), augmentation=augmentation)
    recipes = draws(made, 1000)
    silent = np.array([[not recipe[stem] for stem in (3, 0)] for recipe in recipes])
    np.testing.assert_allclose(silent.mean(axis=0), 0.2, atol=0.04)
    assert not silent.all(axis=1).any()
    recipe = recipes[int(np.argmax(silent[:, 0]))]
    batch = made.render([recipe])
    assert not batch["targets"][0, 0].any()
    whole = examples(record_set).render([recipe])
    np.testing.assert_array_equal(batch["mixture"], whole["targets"].sum(axis=1))


def test_silence_of_the_instrumental_leaves_the_vocals(record_set):
    made = examples(record_set, targets=("instrumental",), augmentation=dataclasses.replace(NONE, silence=1.0))
    assert all([bool(crops) for crops in recipe] == [False, False, False, True] for recipe in draws(made, 20))


@pytest.mark.parametrize("remix", [0.0, 1.0])
def test_silent_crops_are_drawn_again_as_often_as_asked(tmp_path, remix):
    record_set = make_set(tmp_path, silent_in_the_middle())

    def silent(skip_silence):
        augmentation = dataclasses.replace(NONE, remix=remix, skip_silence=skip_silence)
        made = examples(record_set, targets=("vocals",), crop_samples=500, augmentation=augmentation)
        return np.mean([not made.render([recipe])["targets"].any() for recipe in draws(made, 300)])

    never, half, always = silent(0.0), silent(0.5), silent(1.0)
    assert never > 0.7
    assert never / 2 == pytest.approx(half, abs=0.12)
    assert always < 0.25  # ten more draws may all miss the sounding sixth of a song


def test_drawing_reads_no_audio(tmp_path):
    made = examples(make_set(tmp_path, five_songs()), augmentation=Augmentation())
    for shard in tmp_path.glob("*.array_record*"):
        shard.unlink()
    recipes = draws(made, 20)
    with pytest.raises(InputError, match="cannot be read"):
        made.render(recipes)


def test_the_mixture_is_the_sum_of_the_augmented_stems(record_set):
    made = examples(record_set, augmentation=Augmentation())
    batch = made.render(draws(made, 20))
    assert batch["mixture"].shape == (20, 2, CROP)
    assert batch["targets"].shape == (20, 4, 2, CROP)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(batch["mixture"], batch["targets"].sum(axis=1), atol=1e-6)


def test_the_instrumental_is_the_sum_of_all_but_the_vocals(record_set):
    recipes = draws(examples(record_set), 5)
    every = examples(record_set).render(recipes)["targets"]
    both = examples(record_set, targets=("instrumental", "vocals")).render(recipes)["targets"]
    np.testing.assert_array_equal(both[:, 1], every[:, 3])
    np.testing.assert_allclose(both[:, 0], every[:, :3].sum(axis=1), atol=1e-6)


def test_a_stem_called_instrumental_is_what_it_says(tmp_path):
    songs = {"a": {"vocals": noise(0, 2), "instrumental": noise(1, 2)}}
    record_set = make_set(tmp_path, songs)
    assert parts_of_targets(record_set, (), ["instrumental"])[1] == {"instrumental": ("instrumental",)}


def test_stems_are_known_by_small_and_capital_letters(record_set):
    recipes = draws(examples(record_set), 3)
    expected = examples(record_set, targets=("vocals", "instrumental")).render(recipes)
    found = examples(record_set, targets=("Vocals", "Instrumental")).render(recipes)
    np.testing.assert_array_equal(found["targets"], expected["targets"])
    assert parts_of_targets(record_set, ("VOCALS", "Bass"), ["Bass"]) == (("vocals", "bass"), {"Bass": ("bass",)})


def test_the_mixture_may_be_made_of_some_stems_only(record_set):
    made = examples(record_set, stems=("vocals", "bass"), targets=("vocals",))
    recipe = draws(made, 1)[0]
    song = five_songs()[f"song {recipe[0][0].song}"]
    start = recipe[0][0].start
    mixture = (song["vocals"] + song["bass"])[:, start : start + CROP]
    np.testing.assert_array_equal(made.render([recipe])["mixture"][0], mixture)


def test_mono_is_the_mean_and_stereo_of_a_mono_set_twice_the_same(record_set, tmp_path):
    recipes = draws(examples(record_set), 3)
    stereo = examples(record_set).render(recipes)["targets"]
    mono = examples(record_set, channels=1).render(recipes)["targets"]
    np.testing.assert_array_equal(mono, stereo.mean(axis=2, keepdims=True))
    one_channel = make_set(tmp_path, {"a": {"vocals": noise(0, 2, channels=1)}}, channels=1)
    recipe = ((Crop(0, 100, Change()),),)
    doubled = examples(one_channel, targets=("vocals",)).render([recipe])["targets"]
    np.testing.assert_array_equal(doubled[0, 0], np.repeat(noise(0, 2, channels=1)[:, 100 : 100 + CROP], 2, axis=0))


@pytest.mark.parametrize("channels", [1, 2])
def test_stretches_put_together_are_the_whole_examples_bit_for_bit(record_set, channels):
    augmentation = Augmentation(mixup=(0.5, 0.2), time_inversion=0.5, silence=0.2)
    made = examples(record_set, crop_samples=4000, channels=channels, augmentation=augmentation)
    recipes = draws(made, 15)  # three epochs
    # Songs of 1,500 samples occur, and inverted crops, which begin with the silence behind such a song.
    drawn = {(crop.song, crop.change.invert_time) for recipe in recipes for crops in recipe for crop in crops}
    assert {(0, True), (0, False), (4, True), (4, False)} <= drawn
    whole = made.render(recipes)
    parts = [made.render(recipes, *cut) for cut in itertools.pairwise([0, 1, 700, 1000, 2600, 3990, 4100, 4200])]
    for name, array in whole.items():
        padded = np.concatenate([array, np.zeros_like(array[..., :200])], axis=-1)
        assert np.concatenate([part[name] for part in parts], axis=-1).tobytes() == padded.tobytes()
    tail = made.render(recipes, 2600)
    assert all(tail[name].tobytes() == array[..., 2600:].tobytes() for name, array in whole.items())


@pytest.mark.parametrize(
    ("start", "stop", "reads", "inverted_reads"),
    [
        (300, 450, [(500, 650)], [(1050, 1200)]),
        (0, 1300, [(200, 1500)], [(200, 1500)]),
        (1200, 1500, [(1400, 1500)], [(200, 300)]),  # the song is longer than the example
        (1300, 1400, [], []),
        (1350, 1400, [], []),
    ],
)
def test_of_a_stretch_only_its_samples_are_read(record_set, start, stop, reads, inverted_reads):
    seen = []

    class Watched(RecordSet):
        def read(self, song, stem, start, stop):
            seen.append((start, stop))
            return super().read(song, stem, start, stop)

    made = examples(Watched.open(record_set.path), stems=("vocals",), targets=("vocals",))
    for change, expected in ((Change(), reads), (Change(invert_time=True), inverted_reads)):
        seen.clear()
        assert made.render([((Crop(3, 200, change),),)], start, stop)["mixture"].shape == (1, 2, stop - start)
        assert seen == expected


def test_a_stretch_of_an_hour_touches_its_own_segments_only(tmp_path, monkeypatch):
    hour = noise(0, 36, channels=1)  # at 10 Hz
    record_set = make_set(tmp_path, {"a": {"vocals": hour}}, channels=1, sample_rate=10, segment_seconds=10)
    made = examples(record_set, targets=("vocals",), channels=1, crop_samples=36000)
    touched = watch_records(monkeypatch)
    stretch = made.render(draws(made, 1), 18050, 18250)["mixture"][0]
    np.testing.assert_array_equal(stretch, hour[:, 18050:18250])
    assert touched == [180, 181, 182]


def test_whole_song_is_the_sum_of_its_stems_or_the_stored_mixture(tmp_path):
    songs = {"a": {"vocals": noise(0, 2), "drums": noise(1, 2.5)}}
    songs["b"] = {**songs["a"], "mixture": noise(2, 2.5)}
    record_set = make_set(tmp_path, songs, split="test")
    vocals = np.pad(songs["a"]["vocals"], [(0, 0), (0, 500)])
    summed, stored = record_set.songs("test")
    mixture, targets = whole_song(record_set, summed, ("vocals", "instrumental"), 2)
    np.testing.assert_array_equal(mixture, vocals + songs["a"]["drums"])
    np.testing.assert_array_equal(targets, [vocals, songs["a"]["drums"]])
    mixture, targets = whole_song(record_set, stored, ("vocals",), 1)
    np.testing.assert_array_equal(mixture, songs["b"]["mixture"].mean(axis=0, keepdims=True))
    np.testing.assert_array_equal(targets, vocals.mean(axis=0, keepdims=True)[None])
    assert "mixture" not in record_set.stems
    for stems, expected in [(("vocals",), vocals), (("drums", "vocals"), songs["b"]["mixture"])]:
        mixture, _ = whole_song(record_set, stored, ("vocals",), 2, stems)
        np.testing.assert_array_equal(mixture, expected)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"targets": ("vocal",)}, "target 'vocal' is not a stem .* are bass, drums, other, vocals, instrumental$"),
        ({"stems": ("vocals", "piano")}, "no stem 'piano': its stems are bass, drums, other, vocals$"),
        ({"stems": ("bass", "drums")}, "target 'other' is not a stem .* are bass, drums$"),
        ({"targets": ("instrumental",), "stems": ("vocals",)}, "target 'instrumental' is not a stem .* are vocals$"),
    ],
)
def test_stems_that_there_are_not(record_set, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        examples(record_set, **fields)


def test_a_split_that_is_not_there_or_has_no_such_stem(tmp_path):
    record_set = make_set(tmp_path, {"a": {"mixture": noise(0, 2), "vocals": noise(1, 2)[:, :0]}}, split="test")
    with pytest.raises(InputError, match="no split 'train'"):
        examples(record_set, targets=())
    with pytest.raises(InputError, match=r"the split 'test' of .* has no song with vocals"):
        Examples(record_set, "test", stems=(), targets=("vocals",), channels=2, crop_samples=100, augmentation=NONE)
