"""Measures the peak memory of `wroformer evaluate` for songs of four stems: it must not grow with their length.

    python benchmarks/evaluation_memory.py

Writes synthetic songs. For each it evaluates a tiny model, scores the saved estimates, and separates one stem for
comparison, each in its own process. Unknown options are passed to `wroformer evaluate` and `separate`. The folder for
songs and stems needs 1.7 GB of disk for 16 minutes of audio, and is emptied afterwards.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from processes import measure, wroformer
from report import print_table, write_result

import wroformer_jax
from wroformer_jax import ModelConfig, RoFormer

RATE = 44100  # Hz
STEMS = ("vocals", "drums", "bass", "other")
SCORING_LIMIT_MIB = 400  # for evaluate --estimates, the part that evaluate adds to separate
SEPARATING_LIMIT = 1.1  # evaluate --checkpoint, as a multiple of separate
GROWTH_LIMIT = 1.1  # longest song, as a multiple of the shortest

# The published STFT and bands, but narrow layers: the benchmark is about scoring.
TINY = ModelConfig(
    stems=STEMS, dim=16, depth=1, heads=1, dim_head=16, dim_feed_forward=32, mask_layers=1, dim_mask=32, num_sinks=2
)


def write_song(folder: Path, seconds: int) -> None:
    """Writes a 16-bit stereo WAV for each stem, second by second: notes that change every second, and noise."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    folder.mkdir(parents=True)
    for stem in STEMS:
        with soundfile.SoundFile(folder / f"{stem}.wav", "w", RATE, 2, "PCM_16") as file:
            for _ in range(seconds):
                note = np.sin(2 * np.pi * rng.uniform(80, 2000) * t) * np.exp(-3 * t)
                file.write(0.1 * note[:, None] + 0.01 * rng.standard_normal((RATE, 2)))


def save_tiny_model(folder: Path) -> None:
    model = RoFormer(TINY)
    wroformer_jax.save(folder, model, wroformer_jax.init_params(model, 0))


def measure_song(folder: Path, seconds: int, checkpoint: str | Path, arguments: list[str]) -> dict[str, dict[str, int]]:
    """Writes a song to `folder` and returns the time and memory of each of the three commands for it."""
    data, estimates = folder / "data", folder / "estimates"
    write_song(data / "song", seconds)
    made = ["--checkpoint", checkpoint, *arguments]
    commands = {
        "evaluate --checkpoint": wroformer("evaluate", "--data", data, "--save-stems", estimates, *made),
        "evaluate --estimates": wroformer("evaluate", "--data", data, "--estimates", estimates),
        "separate": wroformer("separate", data / "song" / "vocals.wav", "--output", folder / "separated", *made),
    }
    return {name: measure(command) for name, command in commands.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="the model (default: a tiny one with the published STFT)")
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 240, 960], help="lengths of the songs")
    parser.add_argument("--scratch", type=Path, help="folder for songs and stems (default: the system's)")
    args, arguments = parser.parse_known_args()

    rows = []
    for seconds in args.seconds:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            if not args.checkpoint:
                save_tiny_model(Path(folder, "model"))
            measured = measure_song(Path(folder), seconds, args.checkpoint or Path(folder, "model"), arguments)
        print(f"{seconds} s of audio: {measured}", file=sys.stderr, flush=True)
        rows += [{"audio s": seconds, "command": name, **result} for name, result in measured.items()]

    print_table(rows)
    options = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    options += ["--seconds", *map(str, args.seconds), *arguments]
    write_result("evaluation_memory", shlex.join(["python", "benchmarks/evaluation_memory.py", *options]), rows)
    peaks = {name: [row["peak MiB"] for row in rows if row["command"] == name] for name in measured}
    ok = (
        max(peaks["evaluate --estimates"]) <= SCORING_LIMIT_MIB
        and max(peaks["evaluate --checkpoint"]) <= SEPARATING_LIMIT * max(peaks["separate"])
        and all(max(of_command) <= GROWTH_LIMIT * of_command[0] for of_command in peaks.values())
    )
    print(
        f"scoring at most {SCORING_LIMIT_MIB} MiB, evaluate at most {SEPARATING_LIMIT} times separate, "
        f"all at most {GROWTH_LIMIT} times the shortest song's: {'yes' if ok else 'NO'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
