"""Compares the cSDR of `wroformer evaluate` with that of the command `museval` on the same files.

    python benchmarks/museval_command.py

Writes synthetic songs in the layout of MUSDB18-HQ and estimates of their stems to a temporary folder, and scores them
with both commands. Needs museval (`pip install "wroformer-jax[eval]"`) and ffmpeg, with which museval reads the songs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from processes import wroformer
from report import print_table, write_result

from wroformer_jax.data.synthetic.song import synthesise_song
from wroformer_jax.stems import SYNTHETIC_STEMS

RATE = 44100  # Hz
TOLERANCE = 1.1e-5  # dB; museval rounds the score of each frame to 1e-5 dB


def write_song(data: Path, estimates: Path, index: int, seconds: float) -> None:
    """Writes a song of 16-bit stems with a pause in the vocals, its mixture, and estimates with leakage and hiss."""
    rng = np.random.default_rng(index)
    stems = synthesise_song((17, index), seconds)
    stems["vocals"][:, 2 * RATE : 4 * RATE] = 0
    for name, audio in {**stems, "mixture": sum(stems.values())}.items():
        write_wav(data / f"Song {index + 1}" / f"{name}.wav", audio, "PCM_16")
    for i, (stem, audio) in enumerate(stems.items()):
        leaking = rng.uniform(0.02, 0.1) * stems[SYNTHETIC_STEMS[i - 1]]
        hiss = rng.uniform(0.001, 0.01) * rng.standard_normal(audio.shape)
        estimate = (rng.uniform(0.8, 1) * audio + leaking + hiss).astype(np.float32)
        write_wav(estimates / f"Song {index + 1}" / f"{stem}.wav", estimate, "FLOAT")


def write_wav(path: Path, audio: np.ndarray, subtype: str) -> None:
    """Writes audio (channels, samples) as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, RATE, subtype=subtype)


def score_with_museval(folder: Path) -> dict[tuple[str, str], float]:
    """Returns the median SDR over frames of each song and stem, from the files that museval writes."""
    command = shutil.which("museval", path=sysconfig.get_path("scripts")) or shutil.which("museval")
    if command is None or shutil.which("ffmpeg") is None:
        sys.exit("needs the commands museval and ffmpeg")
    arguments = ["--musdb", folder / "data", "--is-wav", "-o", folder / "museval", folder / "estimates"]
    subprocess.run([command, *arguments], check=True, stdout=sys.stderr)
    medians = {}
    for path in sorted((folder / "museval" / "test").glob("*.json")):
        for target in json.loads(path.read_text())["targets"]:
            frames = [float(frame["metrics"]["SDR"]) for frame in target["frames"]]
            medians[path.stem, target["name"]] = float(np.nanmedian(frames))
    return medians


def score_with_wroformer(folder: Path) -> dict[tuple[str, str], float]:
    """Returns the cSDR of each song and stem, from the file that `wroformer evaluate` writes."""
    output = folder / "wroformer.json"
    arguments = ["--estimates", folder / "estimates", "--data", folder / "data", "--output", output]
    subprocess.run(wroformer("evaluate", *arguments), check=True, stdout=subprocess.DEVNULL)
    songs = json.loads(output.read_text())["songs"]
    return {(song, stem): row["csdr"] for song in songs for stem, row in songs[song]["stems"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=3, help="number of songs")
    parser.add_argument("--seconds", type=float, default=12.5, help="length of each song")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(args.songs):
            write_song(folder / "data" / "test", folder / "estimates" / "test", index, args.seconds)
        theirs, found = score_with_museval(folder), score_with_wroformer(folder)
    rows = [
        {
            "song": song,
            "stem": stem,
            "museval dB": round(theirs[song, stem], 6),
            "wroformer dB": round(found[song, stem], 6),
            "difference dB": abs(theirs[song, stem] - found[song, stem]),
        }
        for song, stem in sorted(theirs)
    ]
    print_table([{key: f"{value:.6f}" if "dB" in key else value for key, value in row.items()} for row in rows])
    options = ["--songs", str(args.songs), "--seconds", str(args.seconds)]
    write_result("museval_command", shlex.join(["python", "benchmarks/museval_command.py", *options]), rows)
    worst = max(row["difference dB"] for row in rows)
    ok = theirs.keys() == found.keys() and worst <= TOLERANCE
    print(f"all {len(rows)} within {TOLERANCE} dB, largest difference {worst:.1e} dB: {'yes' if ok else 'NO'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
