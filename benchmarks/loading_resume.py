"""Kills loading at random moments: the batches must be those of an uninterrupted run.

    python benchmarks/loading_resume.py

A process loads batches with one worker and records the digest of each batch and the state after it. It is killed
(SIGKILL) at random moments and restarted from the last recorded state. All digests are compared with those of one
uninterrupted process, and every worker must end with its process.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import print_table, write_result
from synthetic_set import synthesise, write_set

from wroformer_jax.data.loading import Batches, Loading, batches
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.io.files import replacing

LOADING = Loading(crop_samples=4 * 44100, batch_size=8, targets=("vocals",), seed=1, workers=1)


def load(record_set: RecordSet) -> Batches:
    return batches(record_set, "train", LOADING)


def consume(path: str, folder: Path, number: int) -> None:
    """Loads and records batches until `number` are recorded in total."""
    state = folder / "state.json"
    with load(RecordSet.open(path)) as loader, (folder / "digests.jsonl").open("a") as digests:
        if state.exists():
            loader.set_state(json.loads(state.read_text()))
        while (at := loader.get_state()["batch"]) < number:
            batch = next(loader)
            workers = [worker.pid for worker in multiprocessing.active_children()]
            digest = hashlib.sha256(batch["mixture"].tobytes() + batch["targets"].tobytes()).hexdigest()
            digests.write(json.dumps({"batch": at, "digest": digest, "workers": workers}) + "\n")
            digests.flush()
            with replacing(state) as temporary:
                temporary.write_text(json.dumps(loader.get_state()))


def noted(folder: Path) -> list[dict]:
    """Returns the recorded batches; ignores a line that was cut short."""
    path = folder / "digests.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def run(arguments: list[str], seconds: float | None) -> bool:
    """Runs `consume` in its own process and kills it after some seconds; returns whether it was killed."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.DEVNULL if seconds else None)
    try:
        if process.wait(seconds):
            sys.exit(f"loading failed with status {process.returncode}")
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def alive(process_ids: set[int]) -> set[int]:
    """Returns the processes that have not ended within ten seconds."""
    deadline = time.monotonic() + 10
    while process_ids and time.monotonic() < deadline:
        time.sleep(0.05)
        process_ids = {pid for pid in process_ids if is_running(pid)}
    return process_ids


def is_running(process_id: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seconds", type=float, nargs=2, default=[0.5, 6], help="least and most before a kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--consume", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.consume:
        return consume(args.consume[0], Path(args.consume[1]), int(args.consume[2]))
    moments = random.Random(args.seed)
    rows, outlived = [], set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_set(folder / "set", synthesise(6, 60)).path
        for kill in range(args.kills):
            seconds, before = moments.uniform(*args.seconds), len(noted(folder))
            run(["--consume", path, name, "1000000"], seconds)
            new = noted(folder)[before:]
            outlived |= alive({pid for line in new for pid in line["workers"]})
            rows.append({"kill": kill + 1, "after s": seconds, "batches": len(new)})
            rows[-1]["from"], rows[-1]["to"] = (new[0]["batch"], new[-1]["batch"]) if new else ("", "")
            print(rows[-1], file=sys.stderr, flush=True)
        number = max(line["batch"] for line in noted(folder)) + 11
        run(["--consume", path, name, str(number)], None)
        reference = folder / "reference"
        reference.mkdir()
        run(["--consume", path, str(reference), str(number)], None)
        expected = {line["batch"]: line["digest"] for line in noted(reference)}
        found = noted(folder)
    different = sum(line["digest"] != expected[line["batch"]] for line in found)
    missing = len(expected.keys() - {line["batch"] for line in found})
    print_table(rows)
    print(
        f"{len(found)} batches noted: {different} differ, {missing} of {number} missing; workers left: {len(outlived)}"
    )
    rows.append({"batches": len(found), "different": different, "missing": missing, "workers left": len(outlived)})
    write_result("loading_resume", f"python {' '.join(sys.argv)}", rows)
    sys.exit(bool(different or missing or outlived))


if __name__ == "__main__":
    main()
