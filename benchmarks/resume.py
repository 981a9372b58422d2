"""A training run that is killed at random moments and restarted ends with the weights of one that is not.

    python benchmarks/resume.py

Trains once without interruption (or takes the workdir of such a run, --reference, made by the same code on the same
machine), and once killed (SIGKILL) at random moments and restarted; compares the final weights bit for bit and the
records of the runs byte for byte.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import print_table, write_result

ROOT = Path(__file__).parents[1]


def last_step(workdir: Path) -> int:
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    steps = [line.split('"step": ')[1].split(",")[0] for line in lines if '"step": ' in line]
    return int(steps[-1]) if steps else 0


def run_until(command: list[str], seconds: float | None) -> bool:
    """Runs the command, killing it after so many seconds; whether it was killed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        if process.wait(seconds):
            sys.exit(f"training failed with status {process.returncode}")
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def weights_that_differ(a: Path, b: Path) -> int:
    import jax

    import wroformer_jax

    first, second = (jax.tree.leaves(wroformer_jax.load(path)[1]) for path in (a, b))
    return sum(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(first, second, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="workdir of a run that was never interrupted")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=[30, 150], help="least and most before a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, settings = parser.parse_known_args()  # the rest goes to train.py: --config.steps=120
    moments = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        train = [sys.executable, "train.py", f"--config={args.config}", *settings]
        if args.reference is None:
            args.reference = Path(folder) / "reference"
            run_until([*train, f"--workdir={args.reference}"], None)
        command = [*train, f"--workdir={workdir}"]
        for kill in range(args.kills + 1):
            start = time.perf_counter()
            killed = run_until(command, moments.uniform(*args.seconds) if kill < args.kills else None)
            row = {"run": kill + 1, "seconds": time.perf_counter() - start, "ended": "killed" if killed else "whole"}
            rows.append({**row, "last step": last_step(workdir)})
            print(rows[-1], file=sys.stderr, flush=True)
            if not killed:
                break
        differ = weights_that_differ(args.reference, workdir)
        same_record = (args.reference / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    print_table(rows)
    print(f"arrays of weights that differ: {differ}; record of the run the same: {same_record}")
    rows.append({"arrays that differ": differ, "same record": same_record})
    write_result("resume", f"python {' '.join(sys.argv)}", rows)
    sys.exit(bool(differ) or not same_record)


if __name__ == "__main__":
    main()
