"""`wroformer prepare`: stores stems from disk, or synthesised ones, as a set to train and evaluate on."""

from __future__ import annotations

import argparse
import os
from typing import Any

from wroformer_jax.cli.arguments import add_verbose, count, seconds, whole_number
from wroformer_jax.cli.output import EXIT_OK, EXIT_SOME_FAILED, print_out, say
from wroformer_jax.cli.tables import set_table
from wroformer_jax.errors import InputError

# As in data/prepare/find_stems.py and data/segments.py, which import numpy.
LAYOUTS = ("songs", "stems", "csv")
ENCODINGS = ("lossless", "int16", "float32")

_SYNTHETIC = {"seconds": 30.0, "seed": 0, "test_songs": None}  # options that only --synthetic has

_HELP = """
layouts of SOURCE, detected by its names or given by --layout:
  songs   [train|valid|test/]SONG/STEM.wav, as MUSDB18-HQ has it; SONG/mixture.wav is kept for validation and test
  stems   [train|valid|test/]STEM/SONG.wav; files of one name in several folders belong to one song
  csv     a table with the columns instrum and path, and optionally song and split
Files are wav, flac, ogg, mp3 or aiff of any sample rate, mono or stereo. Without splits all songs are for training. A
stem that a song lacks is silence. docs/data.md has the details.

encodings:
  lossless  FLAC: 16- and 24-bit files bit for bit; other sound (float, mp3, resampled) rounded to 24 bits
  int16     no compression, rounded to 16 bits
  float32   no compression, nothing rounded

The same command goes on where it was stopped or killed. DIR becomes a set once all of it is written.

Exit status: 0 all songs are in the set, 1 some were skipped and the others are in it, 2 there is no set,
130 interrupted.
"""


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    prepare = commands.add_parser(
        "prepare",
        help="make a set of stems to train and evaluate on",
        description="Stores stems as a set: sharded records from which any crop is read quickly.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare.set_defaults(run=run, goes_on=True)
    add = prepare.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a folder of stems, or a .csv file")
    add("--synthetic", type=count, metavar="N", help="synthesise N songs instead")
    add("--output", required=True, metavar="DIR", help="the set to write, a local folder or gs://...")
    add("--layout", choices=LAYOUTS, help="of SOURCE (default: detect it)")
    add("--sample-rate", type=count, default=44100, metavar="HZ", help="of the set (default: 44100)")
    add("--segment-seconds", type=count, default=12, metavar="N", help="length of a record (default: 12)")
    add("--encoding", choices=ENCODINGS, default="lossless", help="of the audio (default: lossless)")
    add("--workers", type=count, default=_cores(), metavar="N", help="processes (default: one per core)")
    add("--skip-bad", action="store_true", help="leave out songs with unusable files")
    add("--overwrite", action="store_true", help="replace an existing set")
    synthetic = prepare.add_argument_group("with --synthetic")
    synthetic.add_argument("--seconds", type=seconds, metavar="N", help="length of a song (default: 30)")
    synthetic.add_argument("--seed", type=whole_number, metavar="N", help="each seed gives other songs (default: 0)")
    synthetic.add_argument(
        "--test-songs",
        type=whole_number,
        metavar="N",
        help="number of these songs to keep for testing (default: one in ten)",
    )
    add_verbose(prepare)


def run(args: argparse.Namespace) -> int:
    """Prepares the set and prints a table of it."""
    from wroformer_jax.data.prepare.write import BadFiles, prepare, prepare_synthetic

    common = {
        "sample_rate": args.sample_rate,
        "segment_seconds": args.segment_seconds,
        "encoding": args.encoding,
        "workers": args.workers,
        "overwrite": args.overwrite,
        "say": say,
    }
    _check_options(args)
    try:
        if args.synthetic:
            prepared = prepare_synthetic(args.output, **_synthetic_songs(args), **common)
        else:
            prepared = prepare(args.source, args.output, layout=args.layout, skip_bad=args.skip_bad, **common)
    except BadFiles as error:
        for reason in error.reasons:
            say(f"wroformer: error: {reason}")
        raise
    for song, reason in prepared.skipped:
        say(f"wroformer: warning: {song} is skipped: {reason}")
    print_out("\n".join([set_table(prepared.rows()), "", *prepared.summary()]))
    return EXIT_SOME_FAILED if prepared.skipped else EXIT_OK


def _check_options(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.synthetic is None):
        raise InputError("name either a SOURCE or --synthetic N songs")
    if not args.synthetic:
        for name in _SYNTHETIC:
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} goes with --synthetic only")
    elif args.layout or args.skip_bad:
        raise InputError(f"--{'layout' if args.layout else 'skip-bad'} goes with a SOURCE only")


def _synthetic_songs(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `prepare_synthetic` that describe the songs."""
    chosen = {
        name: default if getattr(args, name) is None else getattr(args, name) for name, default in _SYNTHETIC.items()
    }
    test_songs = chosen.pop("test_songs")
    if test_songs is None:
        test_songs = max(1, args.synthetic // 10) if args.synthetic > 1 else 0
    if test_songs > args.synthetic:
        raise InputError(f"--test-songs {test_songs} are more than the {args.synthetic} songs in all")
    return {"train_songs": args.synthetic - test_songs, "test_songs": test_songs, **chosen}


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
