"""Measures the memory of training against the length of an example, and compares losses between memory settings.

    python benchmarks/training_memory.py

For each length it trains the quickstart's model on random audio for a few steps, one example per step, in its own
process: once with the whole residual stream at once and once piece by piece (`model.places_at_once`). Prints the peak
of the resident memory, the memory that a further second of audio takes between neighbouring lengths (constant if memory
is linear), and the relative difference between the losses of the two ways.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from recipes import read_recipe
from report import print_table, write_result

WAYS = {
    "at once": {"remat": "none", "places_at_once": 0},
    "in pieces": {"remat": "block", "places_at_once": 8192},
}


def train(seconds: float, way: str, steps: int) -> dict[str, object]:
    """Trains for some steps; returns their losses, the peak memory of this process and the seconds per step."""
    import jax
    import numpy as np

    from wroformer_jax.parallel.mesh import make_mesh
    from wroformer_jax.parallel.sharding import to_global
    from wroformer_jax.training.state import batch_shapes, initial_state
    from wroformer_jax.training.step import make_train_step

    quickstart = read_recipe("quickstart.py")
    config = quickstart.with_changes(
        model=WAYS[way], seconds=seconds, synthetic={"song_seconds": seconds}, batch_size=1
    )
    mesh = make_mesh(config.mesh)
    state, step = initial_state(config, mesh), make_train_step(config, mesh)
    rng, shapes, losses = np.random.default_rng(0), batch_shapes(config, mesh), []
    for number in range(steps):
        targets = 0.1 * rng.standard_normal(shapes["targets"], dtype=np.float32)
        rest = 0.1 * rng.standard_normal(shapes["mixture"], dtype=np.float32)
        batch = {"mixture": targets.sum(axis=1) + rest, "targets": targets}
        state, metrics = step(state, to_global(batch, mesh, shapes))
        losses.append(float(jax.block_until_ready(metrics["loss"])))
        if number == 0:
            began = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"losses": losses, "peak MiB": peak, "s a step": (time.perf_counter() - began) / max(1, steps - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 60, 90, 120], help="lengths of examples")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--steps", type=int, default=5, help="steps of each training")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train(float(args.one[0]), args.one[1], args.steps)))
        return
    rows, before = [], {}
    for seconds in args.seconds:
        losses = []
        for way in args.ways:
            command = [sys.executable, __file__, "--one", str(seconds), way, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            row = {"audio s": seconds, "way": way}
            if done.returncode:
                rows.append({**row, "peak MiB": f"ended with {done.returncode}"})
                print(rows[-1], done.stderr[-300:], file=sys.stderr, flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            losses.append(found["losses"])
            row |= {"peak MiB": round(found["peak MiB"]), "MiB a second more": "-", "s a step": found["s a step"]}
            if way in before:
                length, peak = before[way]
                row["MiB a second more"] = round((found["peak MiB"] - peak) / (seconds - length), 1)
            before[way] = seconds, found["peak MiB"]
            apart = [abs(one - other) / one for one, other in zip(losses[0], losses[-1], strict=True)]
            row |= {"loss": found["losses"][-1], "apart": max(apart) if len(losses) > 1 else "-"}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print_table(rows)
    write_result("training_memory", f"python {' '.join(sys.argv)}", rows)


if __name__ == "__main__":
    main()
