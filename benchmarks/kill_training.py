"""Kills training runs at random moments, also while they save: they must end with the weights of an uninterrupted run.

    python benchmarks/kill_training.py

Trains once without interruption, or takes the workdir of such a run (--reference), made by the same code on the same
machine. Then trains again, and kills (SIGKILL) and restarts the run --kills times. The moments alternate: while one of
the next checkpoints is being written, a random time after the first step, and a random time after the start. If a run
finishes earlier, it is compared with the first one, weights bit for bit and records byte for byte, and another run
begins. Finally a run gets SIGTERM, to measure how long it takes to save and exit, and is compared at its end.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from report import print_table, write_result

ROOT = Path(__file__).parents[1]
# A model and songs so small that a process trains for longer than it compiles.
SMALL = [
    "--config.model.dim=8", "--config.model.num_bands=8", "--config.model.dim_feed_forward=8",
    "--config.model.dim_mask=8", "--config.seconds=0.3", "--config.synthetic.song_seconds=2",
    "--config.synthetic.train_songs=4", "--config.validation.songs=1", "--config.batch_size=2", "--config.steps=600",
    "--config.checkpoints.every=10", "--config.validation.every=200", "--config.loss.windows=(1024,256)",
    "--config.optimizer.ema=0.9",
]  # fmt: skip


class Life:
    """A process that trains; `trains` is set once it took its first step."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.began = time.perf_counter()
        self.trains = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # it is a pipe
        for line in self.process.stdout:
            if line.startswith("compiled and took the first step"):
                self.trains.set()
        self.trains.set()  # the process has ended


def ended(process: subprocess.Popen) -> bool:
    """Returns whether the run has finished; exits if it failed."""
    if process.poll():
        sys.exit(f"training failed with status {process.returncode}")
    return process.returncode == 0


def being_written(checkpoints: Path) -> set[tuple[str, int]]:
    """Returns names and inode numbers of the incomplete checkpoints."""
    found = set()
    for path in checkpoints.glob("*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):  # complete by now
            found.add((path.name, path.stat().st_ino))
    return found


def wait_for_save(life: Life, checkpoints: Path, number: int) -> bool:
    """Waits until `number` more checkpoints are, or were, being written; returns False if the run ends before."""
    seen = being_written(checkpoints)  # left by the previous process
    while number and not ended(life.process):
        new = being_written(checkpoints) - seen
        seen |= new
        number -= len(new)
        time.sleep(0.0005)
    return not number


def wait_for_time(life: Life, seconds: float | None) -> bool:
    """Waits for some seconds, or for the end of the run if None; returns whether the run goes on."""
    try:
        life.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return not ended(life.process)


def wait(life: Life, end: str, checkpoints: Path, moments: random.Random, seconds: tuple[float, float]) -> bool:
    """Waits for the moment at which to end a process; returns whether the run goes on until then."""
    if end.endswith("while saving"):
        return wait_for_save(life, checkpoints, moments.randint(1, 5))
    if end == "killed while training":
        life.trains.wait()
    if end.startswith("killed"):
        return wait_for_time(life, moments.uniform(*seconds))
    return wait_for_time(life, None)


def newest(checkpoints: Path) -> int:
    """Returns the step of the newest checkpoint, 0 if there is none."""
    steps = checkpoints.iterdir() if checkpoints.is_dir() else []
    return max((int(step.name) for step in steps if step.name.isdigit()), default=0)


def differences(a: Path, b: Path) -> dict[str, object]:
    """Compares the weights and the records of two runs."""
    import jax

    import wroformer_jax

    first, second = (jax.tree.leaves(wroformer_jax.load(path)[1]) for path in (a, b))
    differ = sum(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(first, second, strict=True))
    same = (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    return {"arrays that differ": differ, "same records": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="workdir of a run that was never interrupted")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--kills", type=int, default=30, help="number of kills")
    parser.add_argument("--seconds", type=float, nargs=2, default=[0.5, 15], help="least and most before a kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    args, settings = parser.parse_known_args()  # the rest goes to train.py: --config.steps=120
    moments = random.Random(args.seed)
    train = [sys.executable, "train.py", f"--config={args.config}", *SMALL, *settings]
    ways = ("killed while saving", "killed while training", "killed")
    ends = iter([*(ways[kill % 3] for kill in range(args.kills)), "SIGTERM while saving"])
    rows, runs, end = [], [], next(ends)
    with tempfile.TemporaryDirectory() as folder:
        if args.reference is None:
            args.reference = Path(folder) / "reference"
            wait_for_time(Life([*train, f"--workdir={args.reference}"]), None)
        while end != "over":
            run = Path(folder) / f"run{len(runs) + 1}"
            life = Life([*train, f"--workdir={run}"])
            goes_on = wait(life, end, run / "checkpoints", moments, args.seconds)
            asked = time.perf_counter()
            if goes_on:
                life.process.send_signal(signal.SIGTERM if end.startswith("SIGTERM") else signal.SIGKILL)
                life.process.wait()
            rows.append(
                {
                    "run": len(runs) + 1,
                    "end": end if goes_on else "whole",
                    "seconds before": asked - life.began,
                    "seconds to exit": time.perf_counter() - asked,
                    "status": life.process.returncode,
                    "newest checkpoint": newest(run / "checkpoints"),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
            if goes_on:
                end = next(ends, "whole")
            else:
                runs.append(differences(args.reference, run))
                print(runs[-1], file=sys.stderr, flush=True)
                end = "over" if end == "whole" else end
    print_table(rows)
    print_table(runs)
    write_result("kill_training", f"python {' '.join(sys.argv)}", [*rows, *runs])
    sys.exit(any(run["arrays that differ"] or not run["same records"] for run in runs))


if __name__ == "__main__":
    main()
