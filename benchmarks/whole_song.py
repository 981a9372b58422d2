"""Measures the memory and time of separating a whole song in one pass, at the published size.

    python benchmarks/whole_song.py

Saves a model of random weights at the published size, writes synthetic songs, and separates each with
`wroformer separate --chunk-seconds whole` in its own process. Takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from processes import measure, wroformer
from report import print_table, write_result
from separation_memory import write_recording

from wroformer_jax.checkpoints.model_dir import save_model
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer

LIMIT_GIB = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 240], help="lengths of the songs")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "published_size"
        config = ModelConfig()
        save_model(checkpoint, config, init_params(RoFormer(config), 0))
        for seconds in args.seconds:
            song, output = Path(folder) / "song.wav", Path(folder) / f"stems_{seconds}"
            write_recording(song, seconds)
            measured = measure(
                wroformer("separate", song, "--checkpoint", checkpoint, "--output", output, "--chunk-seconds", "whole")
            )
            rows.append({"audio s": seconds, **measured, "peak GiB": round(measured["peak MiB"] / 1024, 2)})
            print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    write_result("whole_song", f"python {' '.join(sys.argv)}", rows)
    return int(rows[-1]["peak GiB"] > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
