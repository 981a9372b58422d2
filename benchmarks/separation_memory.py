"""Peak memory of `wroformer separate` for a short and a long recording: it must not grow with the length.

    python benchmarks/separation_memory.py --checkpoint runs/quickstart

Writes synthetic recordings, separates each in a process of its own, prints a table and writes the same as JSON. The
folder for recordings and stems needs 2.6 GB of disk for an hour, and is emptied again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 44100  # Hz
RESULT = Path(__file__).parent / "results" / "separation_memory.json"
LIMIT_MIB = 1536  # for the longest recording
GROWTH_LIMIT = 1.1  # longest against shortest


def write_recording(path: Path, seconds: int) -> None:
    """A 16-bit stereo wav of chords that change every second over noise, a second at a time."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for _ in range(seconds):
            hertz = rng.uniform(80, 2000, (6, 1))
            chord = np.sin(2 * np.pi * hertz * t).sum(axis=0) * np.exp(-3 * t)
            file.write(0.05 * chord[:, None] + 0.02 * rng.standard_normal((RATE, 2)))


def measure(recording: Path, output: Path, checkpoint: str, arguments: list[str]) -> dict[str, float]:
    """Separates a recording; its process's largest resident memory in MiB, and the time it took in seconds."""
    command = [sys.executable, "-m", "wroformer_jax.cli", "separate", str(recording)]
    command += ["--checkpoint", checkpoint, "--output", str(output), *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"separation failed with status {os.waitstatus_to_exitcode(status)}")
    kibibytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {"peak_mib": kibibytes / 1024, "wall_seconds": time.perf_counter() - start}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--seconds", type=int, nargs="+", default=[300, 3600], help="lengths of the recordings")
    parser.add_argument("--scratch", type=Path, help="folder for recordings and stems (default: the system's)")
    parser.add_argument("--result", type=Path, default=RESULT)
    args, arguments = parser.parse_known_args()

    rows = []
    print(f"{'audio s':>8} {'wall s':>8} {'x real time':>12} {'peak MiB':>9} {'of the first':>13}")
    for seconds in args.seconds:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            recording = Path(folder) / "recording.wav"
            write_recording(recording, seconds)
            row = {"audio_seconds": seconds, **measure(recording, Path(folder) / "out", args.checkpoint, arguments)}
        rows.append(row)
        speed, growth = seconds / row["wall_seconds"], row["peak_mib"] / rows[0]["peak_mib"]
        wall, peak = row["wall_seconds"], row["peak_mib"]
        print(f"{seconds:8d} {wall:8.1f} {speed:12.1f} {peak:9.0f} {growth:13.3f}", flush=True)

    args.result.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": " ".join(
            ["python benchmarks/separation_memory.py --checkpoint", Path(args.checkpoint).name, *arguments]
        ),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": rows,
    }
    args.result.write_text(json.dumps(result, indent=2) + "\n")
    peaks = [row["peak_mib"] for row in rows]
    ok = max(peaks) <= LIMIT_MIB and max(peaks) <= GROWTH_LIMIT * peaks[0]
    print(f"at most {LIMIT_MIB} MiB and {GROWTH_LIMIT} times the first: {'yes' if ok else 'NO'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
