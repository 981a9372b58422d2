"""Songs with known stems, and `wroformer evaluate` run on them."""

import json
import re

import soundfile

from support.separation_models import noise
from wroformer_jax.cli import app

RATE = 1000  # Hz
SECONDS = 3


def sound(seed, samples=SECONDS * RATE, channels=2, peak=0.4):
    return noise(channels, samples, seed, peak)


def write(path, audio, rate=RATE, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}) | keywords)


def make_song(folder, seed=0, stems=("vocals", "drums", "bass"), **keywords):
    """Writes a song's stems and returns them."""
    audio = {stem: sound(10 * seed + i) for i, stem in enumerate(stems)}
    for stem, samples in audio.items():
        write(folder / f"{stem}.wav", samples, **keywords)
    return audio


def run(*arguments):
    """Runs `wroformer evaluate` and returns its exit status."""
    return app.main(["evaluate", *map(str, arguments)])


def evaluate(tmp_path, *arguments):
    """Scores the model that stands in for every checkpoint; returns the exit status."""
    usual = ("--checkpoint", "model.ckpt", "--data", tmp_path / "data", "--chunk-seconds", 0.25)
    return run(*usual, "--output", tmp_path / "results.json", *arguments)


def score(tmp_path, *arguments):
    """Scores the estimates of another tool; returns the exit status."""
    usual = ("--estimates", tmp_path / "estimates", "--data", tmp_path / "data")
    return run(*usual, "--output", tmp_path / "results.json", *arguments)


def kept(tmp_path):
    """The content of the file of results."""
    return json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


def scored_songs(capsys):
    """The songs that were scored since the output was last read, from the lines of progress."""
    return re.findall(r"^\[\d+/\d+\] (Song \d):", capsys.readouterr().err, re.MULTILINE)
