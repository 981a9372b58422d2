"""Measures the peak memory of `wroformer separate`: it must not grow with the length of the recording.

    python benchmarks/separation_memory.py --checkpoint runs/quickstart

Writes synthetic recordings and separates each in its own process. Unknown options are passed to `wroformer separate`.
The folder for recordings and stems needs 2.6 GB of disk for an hour of audio, and is emptied afterwards.
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

RATE = 44100  # Hz
LIMIT_MIB = 1536  # for the longest recording
GROWTH_LIMIT = 1.1  # longest recording, as a multiple of the shortest


def write_recording(path: Path, seconds: int) -> None:
    """Writes a 16-bit stereo WAV, second by second: chords that change every second, and noise."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for _ in range(seconds):
            hertz = rng.uniform(80, 2000, (6, 1))
            chord = np.sin(2 * np.pi * hertz * t).sum(axis=0) * np.exp(-3 * t)
            file.write(0.05 * chord[:, None] + 0.02 * rng.standard_normal((RATE, 2)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the model")
    parser.add_argument("--seconds", type=int, nargs="+", default=[300, 3600], help="lengths of the recordings")
    parser.add_argument("--scratch", type=Path, help="folder for recordings and stems (default: the system's)")
    args, arguments = parser.parse_known_args()

    rows = []
    for seconds in args.seconds:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            recording = Path(folder) / "recording.wav"
            write_recording(recording, seconds)
            output = Path(folder) / "out"
            measured = measure(
                wroformer("separate", recording, "--checkpoint", args.checkpoint, "--output", output, *arguments)
            )
        print(f"{seconds} s of audio: {measured['wall s']} s, {measured['peak MiB']} MiB", file=sys.stderr, flush=True)
        first = rows[0]["peak MiB"] if rows else measured["peak MiB"]
        speed, growth = seconds / measured["wall s"], measured["peak MiB"] / first
        rows.append({"audio s": seconds, **measured, "x real time": round(speed, 1), "to the first": round(growth, 3)})

    print_table(rows)
    options = ["--checkpoint", args.checkpoint, "--seconds", *map(str, args.seconds), *arguments]
    command = shlex.join(["python", "benchmarks/separation_memory.py", *options])
    write_result("separation_memory", command, rows)
    peaks = [row["peak MiB"] for row in rows]
    ok = max(peaks) <= LIMIT_MIB and max(peaks) <= GROWTH_LIMIT * peaks[0]
    print(f"at most {LIMIT_MIB} MiB and {GROWTH_LIMIT} times the first: {'yes' if ok else 'NO'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
