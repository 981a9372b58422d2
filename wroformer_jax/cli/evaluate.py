"""`wroformer evaluate`: scores separations against the true stems."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wroformer_jax import __version__
from wroformer_jax.cli.arguments import add_model_options, add_verbose, chosen_stems, names
from wroformer_jax.cli.compiled_programs import keep_compiled_programs
from wroformer_jax.cli.output import EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE, print_out, report, say
from wroformer_jax.cli.tables import SCORES_LEGEND, scores_table
from wroformer_jax.errors import InputError

_HELP = """
The references are DIR/test/SONG/STEM.wav or DIR/SONG/STEM.wav (MUSDB18-HQ's layout) in any audio format, or the test
songs of a prepared set (`wroformer prepare`), local or gs://. The command separates SONG/mixture.wav, or the sum of the
stems if there is none. A stem that a song lacks is silence. The instrumental is the sum of all stems but the vocals.
Results are saved song by song, and the same command goes on where it stopped.

Exit status: 0 all songs are scored, 1 some could not be and the others are, 2 nothing is done.
"""


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    evaluate = commands.add_parser(
        "evaluate",
        help="score separations against the true stems",
        description="Separates songs whose stems are known, or takes the estimates of another tool, and scores them.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.set_defaults(run=run, goes_on=True)
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="SRC", help="the model to score, as for `wroformer separate`")
    source.add_argument(
        "--estimates", type=Path, metavar="DIR", help="score DIR/SONG/STEM.wav of another tool instead of a model"
    )
    source.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="show paired differences, B minus A, of the songs in both results",
    )
    add = evaluate.add_argument
    add("--data", metavar="DIR", help="the songs, or a prepared set")
    add("--stems", type=names, metavar="A,B", help="stems to score (default: all that have estimates)")
    add_model_options(evaluate)
    add("--save-stems", type=Path, metavar="DIR", help="save the estimates as DIR/SONG/STEM.wav, 32-bit float")
    add("--output", type=Path, metavar="RESULTS.json", help="save the results here, and go on with the results in it")
    add("--csv", type=Path, metavar="RESULTS.csv", help="write a line per stem and song, too")
    add(
        "--museval",
        action="store_true",
        help="let the museval package compute cSDR: the same number, at minutes per song (needs the extra 'eval')",
    )
    add_verbose(evaluate)


def run(args: argparse.Namespace) -> int:
    """Checks songs, checkpoint, settings and earlier results first, so that mistakes show early, then scores."""
    if args.output and args.csv and os.path.realpath(args.output) == os.path.realpath(args.csv):
        raise InputError(f"--output and --csv are both {args.csv}: give one of them another name")
    if args.compare:
        _refuse(args, "--compare", "data", "stems", "config", "save_stems", "museval")
        return _compare(args)
    if args.estimates:
        _refuse(args, "--estimates", "config", "save_stems")
    if args.data is None:
        raise InputError("--data is missing: name the folder of the songs to evaluate on, or a prepared set")
    return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    from wroformer_jax.evaluation.estimates import doubtful_rest
    from wroformer_jax.evaluation.metrics import import_museval
    from wroformer_jax.evaluation.results import Results, write_csv
    from wroformer_jax.evaluation.scoring import choose_stems, evaluate
    from wroformer_jax.io.buckets import is_remote

    if args.museval:
        import_museval()
    songs = _songs(args.data)
    source, offered, settings = _estimates_found(args, songs) if args.estimates else _estimates_made(args)
    stems = choose_stems(songs, offered, args.stems)
    if warning := doubtful_rest(stems, songs):
        say(f"wroformer: warning: {warning}")
    settings |= {
        "data": args.data if is_remote(args.data) else os.path.abspath(args.data),
        "stems": list(stems),
        "csdr": "museval" if args.museval else "definition",
    }
    about = {"wroformer": __version__} | ({"checkpoint": args.checkpoint} if args.checkpoint else {})
    results = Results.open(args.output, settings, about)
    results.refuse_others(song.name for song in songs)
    results.write()  # fails now rather than after the first song
    if results.songs:
        say(f"{args.output}: goes on with the results of {len(results.songs)} of {len(songs)} songs")
    failed = evaluate(
        songs,
        stems,
        source,
        results,
        use_museval=args.museval,
        say=say,
        report=lambda error: report(error, verbose=args.verbose),
    )
    if not results.songs:
        return EXIT_UNUSABLE
    rows_of_stems = results.by_stem()
    print_out("\n\n".join([*(scores_table(stem, rows) for stem, rows in rows_of_stems.items()), SCORES_LEGEND]))
    if args.csv:
        write_csv(args.csv, rows_of_stems)
    if failed:
        say(f"wroformer: {failed} of {len(songs)} songs could not be scored (see above)")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _songs(data: str) -> Sequence[Any]:
    from wroformer_jax.evaluation.set_songs import find_set_songs, is_for_set
    from wroformer_jax.evaluation.songs import find_songs

    return find_set_songs(data) if is_for_set(data) else find_songs(data)


def _estimates_made(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """Returns the model as a source of estimates, its stems, and the settings that the scores depend on."""
    import jax

    from wroformer_jax.checkpoints.loading import load
    from wroformer_jax.evaluation.estimates import Separator, fingerprint, offered_stems
    from wroformer_jax.separation.stream import chunk_samples

    if args.save_stems and _is_inside(args.save_stems, args.data):
        raise InputError(f"--save-stems {args.save_stems} is in --data, among the true stems: choose another folder")
    keep_compiled_programs()
    model, params = load(args.checkpoint, config=args.config)
    chosen_stems(model.config, None)  # refuses names that cannot be names of files
    chunk_samples(model.config, args.chunk_seconds, args.overlap)
    settings = {
        "weights": fingerprint(model.config, params),
        "chunk_seconds": args.chunk_seconds,
        "overlap": args.overlap,
    }
    params = jax.device_put(params)  # once for all songs
    source = Separator(model, params, args.chunk_seconds, args.overlap, args.batch_size, args.save_stems)
    return source, offered_stems(model.config), settings


def _estimates_found(args: argparse.Namespace, songs: Any) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """Returns the same as `_estimates_made` for the files of another tool."""
    from wroformer_jax.evaluation.estimates import FoundEstimates

    if not os.path.isdir(args.estimates):
        raise InputError(f"--estimates {args.estimates} is not a folder")
    source = FoundEstimates(args.estimates)
    offered = source.stems(songs)
    if not offered:
        raise InputError(f"{args.estimates} has no estimates of these songs: expected SONG/STEM.wav in it")
    return source, offered, {"estimates": os.path.abspath(args.estimates)}


def _compare(args: argparse.Namespace) -> int:
    from wroformer_jax.evaluation.results import differences, read, write_csv, write_json
    from wroformer_jax.evaluation.statistics import summarise

    for option, path in (("--output", args.output), ("--csv", args.csv)):
        if path and os.path.realpath(path) in map(os.path.realpath, args.compare):
            raise InputError(f"{option} {path} is one of the results to compare: choose another")
    first, second = (read(path) for path in args.compare)
    paired = differences(first, second)
    for path, ours, others in ((args.compare[0], first, second), (args.compare[1], second, first)):
        if alone := sorted(set(ours.songs) - set(others.songs)):
            say(f"only in {path}: {', '.join(alone)}")
    together = [set(results.settings.get("stems", ())) for results in (first, second)]
    if together[0] != together[1]:
        say("cSDR depends on which stems are scored together, and these results have different ones")
    print_out(f"{args.compare[1]} minus {args.compare[0]}\n")
    print_out("\n\n".join([*(scores_table(stem, rows, signed=True) for stem, rows in paired.items()), SCORES_LEGEND]))
    if args.output:
        write_json(args.output, {stem: summarise(rows) for stem, rows in paired.items()})
    if args.csv:
        write_csv(args.csv, paired)
    return EXIT_OK


def _refuse(args: argparse.Namespace, source: str, *names: str) -> None:
    """Refuses options that would have no effect."""
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with {source}: leave it out")


def _is_inside(path: Path, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
