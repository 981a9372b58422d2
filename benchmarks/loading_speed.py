"""Measures how fast one worker loads augmented crops, and how long a training step waits for them.

    python benchmarks/loading_speed.py

First it loads 8 s stereo crops of 4 stems with all augmentations of the public recipe, in one worker process, for each
encoding of a set in turn. An example counts once, not once per stem. Required: at least 60 times real time. Then it
runs steps of the quickstart training with such batches. Required: a step waits at most 2 % of its time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from recipes import read_recipe
from report import print_table, write_result
from synthetic_set import synthesise, write_set

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Loading, batches
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.data.segments import ENCODINGS
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.parallel.sharding import to_global
from wroformer_jax.training.state import batch_shapes, initial_state
from wroformer_jax.training.step import make_train_step

RATE = 44100  # Hz
SECONDS = 8  # length of a crop
BATCH = 8


def times_real_time(record_set: RecordSet, num_batches: int) -> float:
    """Returns the speed of loading as a multiple of real time."""
    loading = Loading(crop_samples=SECONDS * RATE, batch_size=BATCH, targets=("vocals",), workers=1)
    with batches(record_set, "train", loading) as loader:
        for _ in range(loading.prefetch + 3):  # excludes the start of the worker and the batches that it has prefetched
            next(loader)
        start = time.perf_counter()
        for _ in range(num_batches):
            next(loader)
        return num_batches * BATCH * SECONDS / (time.perf_counter() - start)


def waiting_share(config: TrainingConfig, record_set: RecordSet, num_steps: int) -> dict[str, float]:
    """Times steps with one batch again and again, then steps that load their batches."""
    loading = Loading(
        crop_samples=config.crop_samples,
        batch_size=config.batch_size,
        targets=config.model.stems,
        workers=1,
        prefetch=config.loading.prefetch,
    )
    mesh = make_mesh(config.mesh)
    step, state, shapes = make_train_step(config, mesh), initial_state(config, mesh), batch_shapes(config, mesh)
    with batches(record_set, "train", loading) as loader:
        batch = next(loader)
        state = jax.block_until_ready(step(state, to_global(batch, mesh, shapes)))[0]
        seconds = {}
        for name, source in (("step s, batch at hand", None), ("step s, loading", loader)):
            waited, start = loader.seconds_waited, time.perf_counter()
            for _ in range(num_steps):
                loaded = to_global(next(source) if source else batch, mesh, shapes)
                state = jax.block_until_ready(step(state, loaded))[0]
            seconds[name] = (time.perf_counter() - start) / num_steps
        waited = (loader.seconds_waited - waited) / num_steps
    return {**seconds, "waiting s": waited, "waiting %": 100 * waited / seconds["step s, loading"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=6)
    parser.add_argument("--song-seconds", type=float, default=90)
    parser.add_argument("--batches", type=int, default=24, help="batches per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    config = read_recipe("quickstart.py")
    with tempfile.TemporaryDirectory() as folder:
        songs = synthesise(args.songs, args.song_seconds)
        sets = {encoding: write_set(Path(folder) / encoding, songs, encoding) for encoding in ENCODINGS}
        rates = {encoding: [] for encoding in ENCODINGS}
        for _ in range(args.rounds):
            for encoding, record_set in sets.items():
                rates[encoding].append(times_real_time(record_set, args.batches))
                print(f"{encoding}: {rates[encoding][-1]:.0f} times real time", file=sys.stderr, flush=True)
        rows = [
            {
                "encoding": encoding,
                "MB an hour of a stem": megabytes_per_hour(sets[encoding], args.songs * args.song_seconds),
                "times real time": statistics.median(measured),
                "slowest round": min(measured),
            }
            for encoding, measured in rates.items()
        ]
        waiting = waiting_share(config, sets["lossless"], args.steps)
    print_table(rows)
    print_table([waiting])
    write_result("loading_speed", f"python {' '.join(sys.argv)}", [*rows, waiting])
    sys.exit(min(map(min, rates.values())) < 60 or waiting["waiting %"] > 2)


def megabytes_per_hour(record_set: RecordSet, seconds: float) -> float:
    """Returns the size of a stem in MB per hour of audio."""
    stored = sum(file.stat().st_size for file in Path(record_set.path).iterdir())
    return stored / 1e6 / len(record_set.stems) / (seconds / 3600)


if __name__ == "__main__":
    main()
