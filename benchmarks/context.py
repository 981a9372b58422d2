"""Trains models on examples of different lengths, where only cues that are far apart say what to separate.

    python benchmarks/context.py

Synthetic songs of 60 s have four voices that never rest, each in its own register. Two of them are the target. Only
breaks show which: about every 20 s the other two are silent for 2 s. Small models learn from crops of 2, 8, 30 and
60 s, with the same amount of audio per step: windowed sink attention with and without sinks, and full attention at one
length. Each is tested on whole songs that it was not trained on, at once and in chunks as long as its crops.

It takes an hour on one core. With --minutes the work can be done in several calls: a call skips trainings that are
done. When all are done, it writes docs/training_context.md, its picture and benchmarks/results/context.json. The last
section of the page is written by hand and kept.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from recipes import read_recipe
from report import aligned, print_table, write_result

from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.evaluation.metrics import usdr
from wroformer_jax.evaluation.statistics import bootstrap_interval
from wroformer_jax.io.files import replacing
from wroformer_jax.model.params import num_parameters
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.parallel.sharding import to_global
from wroformer_jax.training.state import batch_shapes, initial_state
from wroformer_jax.training.step import make_train_step

ROOT = Path(__file__).parents[1]
RATE = 4000  # Hz
SECONDS = 60  # length of a song
REGISTERS = 4  # each has one voice and an equal part of the spectrum up to RATE / 2
REGISTER = RATE / 2 / REGISTERS  # Hz
BREAK = 2.0  # length of a break in seconds
BREAK_EVERY, BREAK_JITTER = 20, 8.0  # seconds: breaks begin at 0, 20, 40 s, or up to 8 s later
NOISE = 1e-3  # 40 dB below a voice
SINGERS = 32  # tracks of each register for training, and as many for testing; each song mixes some of them
TEST_SONGS = 24
AUDIO_PER_STEP = 120  # seconds
CONTEXTS = (2, 8, 30, 60)  # seconds
MODEL = {
    "band_scheme": "band_split",
    "freqs_per_bands": (129, 128, 128, 128),  # a band is a register
    "channels": 1,
    "sample_rate": RATE,
    "stft_n_fft": 1024,
    "stft_hop_length": 400,  # samples, 100 ms
    "stft_win_length": 1024,
    "dim": 32,
    "depth": 3,
    "heads": 2,
    "dim_head": 16,
    "dim_feed_forward": 96,
    "mask_layers": 2,
    "dim_mask": 32,
    "window": 10,
}
ATTENTIONS = {
    "window": {"time_mixer": "windowed_sink", "num_sinks": 0},
    "window and sinks": {"time_mixer": "windowed_sink", "num_sinks": 8},
    "full": {"time_mixer": "full", "num_sinks": 0},
}
RUN = {
    "steps": 1000,
    "data": "made here",
    "optimizer": {"learning_rate": 4e-3},
    "loss": {"windows": (1024,), "hop": 400},
}
DISTANCES = (0, 1, 2, 4, 8, np.inf)  # seconds from a break: borders of the columns
TRAIN, TEST = 0, 1

_Audio = Float32[np.ndarray, " sample"]


@dataclasses.dataclass(frozen=True)
class Song:
    """A song or a crop of one: its mixture and its voices."""

    mixture: _Audio
    voices: Float32[np.ndarray, "register sample"]  # without breaks
    wanted: tuple[int, ...]  # registers of the target voices
    breaks: tuple[float, ...]  # seconds at which the other voices fall silent

    @property
    def target(self) -> _Audio:
        return self.voices[list(self.wanted)].sum(0)

    def distances(self) -> np.ndarray:
        """Returns seconds from the middle of each whole second to the nearest break; below 0.5 if it touches one."""
        middles = np.arange(SECONDS)[:, None] + 0.5
        starts = np.asarray(self.breaks)
        return np.maximum(0, np.maximum(starts - middles, middles - starts - BREAK)).min(axis=1)


def sing(rng: np.random.Generator, register: int) -> _Audio:
    """Returns a voice: notes without rests, each with vibrato and the harmonics that lie in the register."""
    audio, place = np.zeros(SECONDS * RATE), 0
    vibrato, depth = rng.uniform(4, 7), rng.uniform(0.002, 0.01)
    low, high = (register + 0.14) * REGISTER, (register + 0.86) * REGISTER
    while place < len(audio):
        samples = min(round(rng.uniform(0.3, 1.2) * RATE), len(audio) - place)
        times = np.arange(samples) / RATE
        pitch = rng.uniform(80, 160)
        phase = 2 * np.pi * pitch * times + pitch * depth / vibrato * np.sin(2 * np.pi * vibrato * times)
        harmonics = np.arange(np.ceil(low / pitch), high // pitch + 1)
        note = sum(rng.uniform(0.3, 1) * np.sin(n * phase + rng.uniform(0, 2 * np.pi)) for n in harmonics)
        audio[place : place + samples] = note * np.minimum(1, np.minimum(times, times[::-1]) / 0.03)
        place += samples
    return (0.1 * audio / np.sqrt(np.mean(audio**2))).astype(np.float32)


def singers(split: int) -> Float32[np.ndarray, "register singer sample"]:
    """Returns the tracks from which the songs of a split are mixed."""
    rng = np.random.default_rng((split, 0))
    return np.stack([[sing(rng, register) for _ in range(SINGERS)] for register in range(REGISTERS)])


def mix(
    tracks: Float32[np.ndarray, "register singer sample"], rng: np.random.Generator, seconds: int = SECONDS
) -> Song:
    """Mixes a random song, with a random singer for each register and two target registers; returns a crop of it."""
    starts = np.arange(0, SECONDS, BREAK_EVERY)
    breaks = starts + rng.uniform(0, BREAK_JITTER, len(starts))
    singing = [rng.integers(len(track)) for track in tracks]
    wanted = np.sort(rng.permutation(REGISTERS)[: REGISTERS // 2])
    noise = NOISE * rng.standard_normal(SECONDS * RATE, np.float32)
    hop = MODEL["stft_hop_length"]
    begin = hop * int(rng.integers((SECONDS - seconds) * RATE // hop + 1))
    crop = slice(begin, begin + seconds * RATE)

    voices = np.stack([track[singer, crop] for track, singer in zip(tracks, singing, strict=True)])
    resting = np.ones(SECONDS * RATE, np.float32)
    for start in breaks:
        resting[round(start * RATE) : round((start + BREAK) * RATE)] = 0
    gains = [1 if register in wanted else resting[crop] for register in range(REGISTERS)]
    mixture = sum(gain * voice for gain, voice in zip(gains, voices, strict=True)) + noise[crop]
    return Song(mixture, voices, tuple(map(int, wanted)), tuple(float(start) - begin / RATE for start in breaks))


def batch_of(tracks: Float32[np.ndarray, "register singer sample"], seconds: int, seed: int, step: int) -> dict:
    """Returns the examples of a step, each a crop of another song."""
    rng = np.random.default_rng((TRAIN, 1, seed, step))
    songs = [mix(tracks, rng, seconds) for _ in range(AUDIO_PER_STEP // seconds)]
    return {
        "mixture": np.stack([song.mixture for song in songs])[:, None],
        "targets": np.stack([song.target for song in songs])[:, None, None],
    }


@dataclasses.dataclass(frozen=True)
class Training:
    """A model to train."""

    attention: str
    seconds: int  # length of its crops
    seed: int

    @property
    def name(self) -> str:
        return f"{self.attention.replace(' ', '-')}-{self.seconds}s-seed{self.seed}"

    @property
    def config(self) -> TrainingConfig:
        """The quickstart's config with the settings of this training."""
        quickstart = read_recipe("quickstart.py")
        sizes = {"seconds": float(self.seconds), "batch_size": AUDIO_PER_STEP // self.seconds, "seed": self.seed}
        return quickstart.with_changes(**RUN, **sizes, model={**MODEL, **ATTENTIONS[self.attention]})


def trainings(seeds: int) -> list[Training]:
    """Returns the trainings in order. Full attention is a comparison, at one length."""
    kinds = [("window and sinks", seconds) for seconds in (30, 2, 8, 60)]
    kinds += [("window", 30), ("full", 30), *(("window", seconds) for seconds in (2, 8, 60))]
    return [Training(*kind, seed) for seed in range(seeds) for kind in kinds]


def train(training: Training, tracks: Float32[np.ndarray, "register singer sample"], folder: Path) -> None:
    """Trains a model and saves it in the folder."""
    config, mesh, begin = training.config, make_mesh({"data": 1, "fsdp": 1, "seq": 1}), time.monotonic()
    step, state = make_train_step(config, mesh), initial_state(config, mesh)
    losses = []
    for index in range(config.steps):
        batch = batch_of(tracks, training.seconds, training.seed, index)
        state, metrics = step(state, to_global(batch, mesh, batch_shapes(config, mesh)))
        losses.append(float(metrics["loss"]))
        if (index + 1) % 100 == 0:
            minutes = (time.monotonic() - begin) / 60
            print(
                f"{training.name}: step {index + 1}, loss {np.mean(losses[-100:]):.3f}, {minutes:.1f} min", flush=True
            )
    save_model(folder / training.name, config.model, state.params, overwrite=True)


def score(songs: list[Song], folder: Path, training: Training) -> dict[str, Any]:
    """Scores a model: uSDR in dB of each song, whole and in chunks, and the share of voices on the right side.

    In each whole second without a break, a target voice is right if the estimate has more than half of it, and another
    voice is right if the estimate has less. Guessing gets one half right.
    """
    config, params, _ = load_model(folder / training.name)
    separate = jax.jit(lambda audio: RoFormer(config).apply({"params": params}, audio))

    def estimate(mixture: _Audio, seconds: int) -> _Audio:
        starts, length = chunk_starts(seconds), seconds * RATE
        chunks = np.stack([mixture[None, start * RATE :][:, :length] for start in starts])
        return joined(starts, np.asarray(separate(jnp.asarray(chunks)))[:, 0, 0])

    scores: dict[str, Any] = {}
    for way, seconds in (("whole", SECONDS), ("chunks", training.seconds)):
        estimates = [estimate(song.mixture, seconds) for song in songs]
        right = np.stack([_right(song, audio) for song, audio in zip(songs, estimates, strict=True)])
        distances = np.stack([song.distances() for song in songs])
        scores[way] = [usdr(song.target[None], audio[None]) for song, audio in zip(songs, estimates, strict=True)]
        scores[f"{way}_right"] = float(right[distances >= 0.5].mean())
        scores[f"{way}_by_distance"] = [
            float(right[(distances >= max(low, 0.5)) & (distances < high)].mean())
            for low, high in itertools.pairwise(DISTANCES)
        ]
    return scores


def chunk_starts(seconds: int) -> list[int]:
    """Returns the starts of a song's chunks in seconds; the last chunk is moved to end with the song."""
    starts = list(range(0, SECONDS - seconds + 1, seconds))
    return starts if starts[-1] + seconds == SECONDS else [*starts, SECONDS - seconds]


def joined(starts: list[int], chunks: Float32[np.ndarray, "chunk sample"]) -> _Audio:
    """Joins chunks to a song; where two overlap, the earlier one is used."""
    song = np.zeros(SECONDS * RATE, np.float32)
    for start, chunk in reversed(list(zip(starts, chunks, strict=True))):
        song[start * RATE :][: len(chunk)] = chunk
    return song


def _right(song: Song, audio: _Audio) -> np.ndarray:
    """Returns the share of voices that are right in each second."""
    voices = song.voices.reshape(REGISTERS, SECONDS, RATE)
    inside = np.einsum("rst,st->rs", voices, audio.reshape(SECONDS, RATE)) / np.square(voices).sum(-1)
    wanted = np.isin(np.arange(REGISTERS), song.wanted)[:, None]
    return ((inside > 0.5) == wanted).mean(axis=0)


class Experiment:
    """The folder of the experiment, with the models and their scores."""

    def __init__(self, folder: Path, seeds: int) -> None:
        self.folder, self.seeds = folder, seeds

    def scores(self, training: Training) -> dict[str, Any] | None:
        """Returns the scores of a training, None if it is not done."""
        path = self._file(training)
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, end: float) -> None:
        """Trains and scores the models that are not done; begins none after `end` (time.monotonic)."""
        left = [training for training in trainings(self.seeds) if self.scores(training) is None]
        if not left:
            return
        tracks, songs = singers(TRAIN), test_songs()
        for training in left:
            if time.monotonic() > end:
                return
            train(training, tracks, self.folder)
            made = score(songs, self.folder, training)
            self._file(training).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(training)) as temporary:
                temporary.write_text(json.dumps(made))
            print_table(table(self))

    def _file(self, training: Training) -> Path:
        return self.folder / "scores" / f"{training.name}.json"


def test_songs() -> list[Song]:
    """Returns songs of singers that no model was trained on."""
    tracks = singers(TEST)
    return [mix(tracks, np.random.default_rng((TEST, 1, index))) for index in range(TEST_SONGS)]


def kinds() -> list[tuple[str, int]]:
    """Returns (attention, seconds) of each row of the table."""
    trained = {(training.attention, training.seconds) for training in trainings(1)}
    return [(attention, seconds) for attention in ATTENTIONS for seconds in CONTEXTS if (attention, seconds) in trained]


def of_seeds(experiment: Experiment, attention: str, seconds: int) -> list[dict[str, Any]]:
    """Returns the scores of the seeds that are done."""
    found = [experiment.scores(Training(attention, seconds, seed)) for seed in range(experiment.seeds)]
    return [scores for scores in found if scores is not None]


def table(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns a row per attention and length: uSDR in dB with its interval over songs, and the right voices in %."""
    rows = []
    for attention, seconds in kinds():
        row = {"attention": attention, "crop": f"{seconds} s"}
        found = of_seeds(experiment, attention, seconds)
        for way in ("whole", "chunks"):
            row |= dict.fromkeys((way, f"95 % {way}", f"right {way}"), "-")
            if found:
                songs = np.mean([scores[way] for scores in found], axis=0)
                low, high = bootstrap_interval(songs, np.mean) or (np.nan, np.nan)
                right = np.mean([scores[f"{way}_right"] for scores in found])
                row |= {way: f"{songs.mean():.2f}", f"95 % {way}": f"{low:.2f} to {high:.2f}"}
                row |= {f"right {way}": f"{100 * right:.0f} %"}
        if experiment.seeds > 1:
            row["seeds"] = ", ".join(f"{np.mean(scores['whole']):.2f}" for scores in found) or "-"
        rows.append(row)
    return rows


def distance_table(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns the share of right voices in whole songs, by the distance to the nearest break."""
    names = [f"to {high:g} s" if high < np.inf else "farther" for high in DISTANCES[1:]]
    return [
        {
            "attention": attention,
            "crop": f"{seconds} s",
            **{
                name: f"{100 * right:.0f} %"
                for name, right in zip(names, _by_distance(experiment, attention, seconds), strict=True)
            },
        }
        for attention, seconds in kinds()
    ]


def _by_distance(experiment: Experiment, attention: str, seconds: int) -> np.ndarray:
    return np.mean([scores["whole_by_distance"] for scores in of_seeds(experiment, attention, seconds)], axis=0)


def mean_usdr(songs: list[Song], estimates: list[_Audio]) -> float:
    """Returns the mean uSDR over songs in dB."""
    return float(np.mean([usdr(song.target[None], audio[None]) for song, audio in zip(songs, estimates, strict=True)]))


def bounds(songs: list[Song]) -> list[dict[str, Any]]:
    """Returns, per length of chunks, the share of chunks with a break and the best uSDR that they allow.

    The best separation has no error in chunks that contain a frame of a break. In other chunks nothing shows which
    voices are wanted, so it returns half of the mixture, the best constant gain in the mean square.
    """

    def has_break(song: Song, seconds: int) -> np.ndarray:
        starts, begin = np.asarray(chunk_starts(seconds))[:, None], np.asarray(song.breaks)
        overlap = np.minimum(starts + seconds, begin + BREAK) - np.maximum(starts, begin)
        return (overlap >= MODEL["stft_hop_length"] / RATE).any(axis=1)

    def at_best(song: Song, seconds: int) -> _Audio:
        starts = chunk_starts(seconds)
        chunks = [
            (song.target if known else song.mixture / 2)[start * RATE :][: seconds * RATE]
            for start, known in zip(starts, has_break(song, seconds), strict=True)
        ]
        return joined(starts, np.stack(chunks))

    rows = []
    for seconds in CONTEXTS:
        part = float(np.mean([has_break(song, seconds) for song in songs]))
        best = mean_usdr(songs, [at_best(song, seconds) for song in songs]) if part < 1 else np.inf
        limit = f"{best:.2f}" if part < 1 else "none"
        rows.append({"chunks": f"{seconds} s", "with a break": f"{100 * part:.0f} %", "uSDR at best": limit})
    return rows


def draw(path: Path, experiment: Experiment, half: float) -> None:
    """Draws uSDR by the length of crops, and for each attention the share of right voices by distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(ATTENTIONS), width_ratios=[1.5, 1, 1, 1])
    for color, attention in zip(("C0", "C1", "C2"), ATTENTIONS, strict=True):
        lengths = [seconds for name, seconds in kinds() if name == attention]
        for way, style in (("whole", "o-"), ("chunks", "s:")):
            values = [
                np.mean([scores[way] for scores in of_seeds(experiment, attention, seconds)]) for seconds in lengths
            ]
            label = f"{attention}, {'whole songs' if way == 'whole' else 'chunks as long as crops'}"
            first.plot(lengths, values, style, color=color, label=label)
    first.axhline(half, color="grey", linestyle="--", label="half of all voices")
    first.set(xscale="log", xticks=CONTEXTS, xlabel="crops trained on (s)", ylabel="uSDR (dB)")
    first.set_xticklabels(CONTEXTS)
    first.minorticks_off()
    figure.legend(*first.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    places = np.arange(len(DISTANCES) - 1)
    for panel, attention in zip(others, ATTENTIONS, strict=True):
        for name, seconds in kinds():
            if name == attention:
                right = 100 * _by_distance(experiment, attention, seconds)
                panel.plot(places, right, "o-", color=f"C{3 + CONTEXTS.index(seconds)}", label=f"crops of {seconds} s")
        panel.axhline(50, color="grey", linestyle="--")
        panel.set(title=attention, ylim=(40, 102), xlabel="seconds to the nearest break")
        panel.set_xticks(places, [f"to {high:g}" if high < np.inf else "more" for high in DISTANCES[1:]])
        panel.legend(fontsize=7, loc="center right")
    others[0].set_ylabel("voices on the right side (%)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


FINDINGS = "\n## What this shows\n"  # the section from here on is written by hand
DOCUMENT = """# What the length of training examples does

`python benchmarks/context.py` writes this page. The experiment asks when it pays to train on long examples, and how a
model hears what is far away.

Each song of {song} s has {registers} voices that never rest and differ only in their registers. {wanted} of them,
drawn for each song, are the target. Only breaks show which: about every {every} s ({shortest:g} to {longest:g} s) the
other voices are silent for {length:g} s. Separating is easy here; knowing what to separate is hard.

The models have {parameters:.2f} M parameters: {depth} blocks, a band for each register, frames of {hop:g} ms. In each
block a frame sees {half_window} frames on either side, so through all blocks {reach:g} s. Sounds that are farther away
reach it through {sinks} sinks, or not at all. Full attention is the comparison. Each model is trained for {steps} steps
of {audio} s of audio: {crops}. Number of
trainings of each kind: {seeds}.

The table gives the uSDR of the target in dB, the mean over {test_songs} songs of other singers, with its 95 % bootstrap
interval over songs: for whole songs at once, and for chunks as long as the crops. In a second without a break, a voice
is "right" if it is wanted and the estimate has more than half of it, or if it is not wanted and the estimate has less;
guessing gets 50 % right.

```
{scores}
```

The mixtures have {mixture:.2f} dB. Half of each mixture, the safest answer of a model that does not know which voices
are wanted, has {half:.2f} dB. Chunks limit what a model can know: with perfect separation of the chunks that contain a
frame of a break, and half of the mixture elsewhere, uSDR would be

```
{limits}
```

Share of voices that are right in whole songs, by the distance to the nearest break:

```
{distances}
```

![uSDR by the length of crops, and voices on the right side by distance](training_context.png)
"""


def write_document(path: Path, experiment: Experiment, songs: list[Song], limits: list[dict[str, Any]]) -> None:
    """Writes the page; keeps its last section, which is written by hand."""
    hop, sinks = MODEL["stft_hop_length"] / RATE, ATTENTIONS["window and sinks"]["num_sinks"]
    crops = ", ".join(f"{AUDIO_PER_STEP // seconds} crops of {seconds} s" for seconds in CONTEXTS)
    text = DOCUMENT.format(
        song=SECONDS,
        registers=REGISTERS,
        wanted=REGISTERS // 2,
        every=BREAK_EVERY,
        shortest=BREAK_EVERY - BREAK_JITTER,
        longest=BREAK_EVERY + BREAK_JITTER,
        length=BREAK,
        parameters=num_parameters(Training("window and sinks", 30, 0).config.model) / 1e6,
        depth=MODEL["depth"],
        hop=1000 * hop,
        half_window=MODEL["window"] // 2,
        reach=MODEL["depth"] * (MODEL["window"] // 2) * hop,
        sinks=sinks,
        steps=RUN["steps"],
        audio=AUDIO_PER_STEP,
        crops=crops,
        test_songs=TEST_SONGS,
        seeds=experiment.seeds,
        scores=aligned(table(experiment)),
        mixture=mean_usdr(songs, [song.mixture for song in songs]),
        half=mean_usdr(songs, [song.mixture / 2 for song in songs]),
        limits=aligned(limits),
        distances=aligned(distance_table(experiment)),
    )
    _, heading, findings = path.read_text().partition(FINDINGS) if path.exists() else ("", "", "")
    with replacing(path) as temporary:
        temporary.write_text(text + heading + findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/context"), help="where models are kept")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind (default: 1)")
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="begin no training after so many minutes (default: train all)"
    )
    arguments = parser.parse_args()
    experiment = Experiment(arguments.folder, arguments.seeds)
    experiment.run(time.monotonic() + 60 * arguments.minutes)
    if any(experiment.scores(training) is None for training in trainings(arguments.seeds)):
        print("not everything is done yet: the same command continues")
        return
    songs = test_songs()
    rows, distances, limits = table(experiment), distance_table(experiment), bounds(songs)
    for part in (rows, distances, limits):
        print_table(part)
    seeds = f" --seeds {arguments.seeds}" if arguments.seeds > 1 else ""
    write_result("context", f"python benchmarks/context.py{seeds}", [*rows, *distances, *limits])
    draw(ROOT / "docs" / "training_context.png", experiment, mean_usdr(songs, [song.mixture / 2 for song in songs]))
    write_document(ROOT / "docs" / "training_context.md", experiment, songs, limits)


if __name__ == "__main__":
    main()
