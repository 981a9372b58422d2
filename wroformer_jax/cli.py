"""The `wroformer` command.

Only the standard library is imported up here, so that `--help` and mistakes on the command line answer at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wroformer_jax import __version__
from wroformer_jax.arguments import ArgumentParser
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.audio import AudioInfo
    from wroformer_jax.config import ModelConfig

# The keys of audio.ENCODINGS, which it would take numpy to look up.
FORMATS = ("wav16", "wav24", "wav32f", "flac16", "flac24")

EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 0, 1, 2, 130

_SEPARATE_HELP = """
Writes OUTPUT/SONG/STEM.wav for every song, SONG being the file's name without its ending; songs of a folder keep
their place in it: OUTPUT/SUBFOLDER/SONG/STEM.wav. The stems have the song's sample rate, channels and length.

Exit status: 0 all songs are done, 1 some could not be used and the rest is done, 2 nothing is done.
"""

_EVALUATE_HELP = """
DIR/test/SONG/STEM.wav or DIR/SONG/STEM.wav (MUSDB18-HQ's layout) are the references, any audio format; SONG/mixture.wav
is what is separated, or else the sum of the stems. A stem that a song lacks is silence. The instrumental is the sum
of all stems but the vocals. Results are kept song by song: the same command goes on where it stopped.

Exit status: 0 all songs are scored, 1 some could not be and the rest is, 2 nothing is done.
"""


class Song(NamedTuple):
    """A file to separate and the folder that its stems go to."""

    source: Path
    folder: Path


class Settings(NamedTuple):
    """How to separate, the same for all songs."""

    model: Any
    params: Any
    stems: tuple[str, ...]
    args: argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; mistakes in the arguments leave by SystemExit, as argparse does."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        _report(error, verbose=args.verbose)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        _say("wroformer: interrupted")
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="wroformer", description="Music source separation with band-split RoFormers.")
    parser.add_argument("--version", action="version", version=f"wroformer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    separate = commands.add_parser(
        "separate",
        help="separate songs into stems",
        description="Separates songs into stems.",
        epilog=_SEPARATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    separate.set_defaults(run=_separate)
    add = separate.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="wav, flac, ogg, mp3 or aiff files, or folders of them")
    add(
        "--checkpoint",
        required=True,
        metavar="SRC",
        help="a .ckpt, .pt, .pth, .th or .safetensors file, a model folder, a training workdir, "
        "hf://owner/repo/file, or a name from `wroformer models`",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the stems")
    _add_model_options(separate)
    add(
        "--stems",
        type=_names,
        metavar="A,B",
        help="stems to write (default: all, and for a model of one stem the rest)",
    )
    add("--format", choices=FORMATS, default="wav24", help="of the stems; the number is its bits (default: wav24)")
    add("--tta", action="store_true", help="average over swapped channels and polarity, for three times the work")
    add("--overwrite", action="store_true", help="replace stems that are there already")
    _add_verbose(separate)

    _add_evaluate(commands)

    models = commands.add_parser(
        "models", help="list the known checkpoints", description="Lists the known checkpoints."
    )
    models.set_defaults(run=_models)
    _add_verbose(models)
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score separations against the true stems",
        description="Separates songs whose stems are known, or takes what another tool made of them, and scores it.",
        epilog=_EVALUATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.set_defaults(run=_evaluate)
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="SRC", help="the model to score, as for `wroformer separate`")
    source.add_argument(
        "--estimates", type=Path, metavar="DIR", help="score DIR/SONG/STEM.wav of any other tool instead of a model"
    )
    source.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="paired differences, B minus A, of the songs that both results have",
    )
    add = evaluate.add_argument
    add("--data", type=Path, metavar="DIR", help="the songs")
    add("--stems", type=_names, metavar="A,B", help="stems to score (default: all that there are estimates of)")
    _add_model_options(evaluate)
    add("--save-stems", type=Path, metavar="DIR", help="keep the estimates as DIR/SONG/STEM.wav, 32-bit float")
    add("--output", type=Path, metavar="RESULTS.json", help="keep the results here, and go on with those there are")
    add("--csv", type=Path, metavar="RESULTS.csv", help="write a line for each song and stem, too")
    add(
        "--museval",
        action="store_true",
        help="let the museval package compute cSDR: the same number, in minutes a song (needs the extra 'eval')",
    )
    _add_verbose(evaluate)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is read, and how the model is run on a song."""
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="the checkpoint's settings, where it does not carry them")
    add(
        "--chunk-seconds",
        type=_seconds_or_whole,
        default=8.0,
        metavar="N",
        help="seconds that the model hears at once, or 'whole' for a song in one pass (default: 8)",
    )
    add("--overlap", type=_count, default=2, metavar="N", help="chunks that each sample lies in (default: 2)")
    add("--batch-size", type=_count, default=1, metavar="N", help="chunks separated at a time (default: 1)")


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, and show the traceback of an error")


def _models(args: argparse.Namespace) -> int:
    from wroformer_jax.hub import models_table

    _print(models_table())
    return EXIT_OK


def _evaluate(args: argparse.Namespace) -> int:
    """Everything that can fail early does: songs, then checkpoint, settings and earlier results; then the songs."""
    if args.compare:
        return _compare(args)
    if args.output and args.csv and os.path.realpath(args.output) == os.path.realpath(args.csv):
        raise InputError(f"--output and --csv are both {args.csv}: give one of them another name")
    if args.data is None:
        raise InputError("--data is missing: name the folder of the songs to evaluate on")
    from wroformer_jax.metrics import import_museval
    from wroformer_jax.results import LEGEND, Results, table, write_csv
    from wroformer_jax.scoring import choose_stems, evaluate
    from wroformer_jax.songs import find_songs

    if args.museval:
        import_museval()
    songs = find_songs(args.data)
    source, offered, settings = _estimates_found(args, songs) if args.estimates else _estimates_made(args)
    stems = choose_stems(songs, offered, args.stems)
    settings |= {
        "data": os.path.abspath(args.data),
        "stems": list(stems),
        "csdr": "museval" if args.museval else "definition",
    }
    about = {"wroformer": __version__} | ({"checkpoint": args.checkpoint} if args.checkpoint else {})
    results = Results.open(args.output, settings, about)
    results.refuse_others(song.name for song in songs)
    results.write()  # what cannot be written is found out now
    if results.songs:
        _say(f"{args.output}: goes on with the results of {len(results.songs)} of {len(songs)} songs")
    failed = evaluate(
        songs,
        stems,
        source,
        results,
        use_museval=args.museval,
        say=_say,
        report=lambda error: _report(error, verbose=args.verbose),
    )
    if not results.songs:
        return EXIT_UNUSABLE
    _print("\n\n".join([*(table(stem, results.rows(stem)) for stem in results.stems), LEGEND]))
    if args.csv:
        write_csv(args.csv, results)
    if failed:
        _say(f"wroformer: {failed} of {len(songs)} songs could not be scored (see above)")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _estimates_made(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """Where estimates come from if a model is to make them, the stems it has, and the settings that matter."""
    import jax

    from wroformer_jax.scoring import Separator, fingerprint, offered_stems
    from wroformer_jax.separation import chunk_samples
    from wroformer_jax.sources import load

    if args.save_stems and _is_inside(args.save_stems, args.data):
        raise InputError(f"--save-stems {args.save_stems} is in --data: its stems would be taken for songs")
    model, params = load(args.checkpoint, config=args.config)
    _chosen_stems(model.config, None)  # their names become names of files
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
    """As `_estimates_made`, if another tool has made them."""
    from wroformer_jax.scoring import FoundEstimates

    if not os.path.isdir(args.estimates):
        raise InputError(f"--estimates {args.estimates} is not a folder")
    source = FoundEstimates(args.estimates)
    offered = source.stems(songs)
    if not offered:
        raise InputError(f"{args.estimates} has no estimates of these songs: expected SONG/STEM.wav in it")
    return source, offered, {"estimates": os.path.abspath(args.estimates)}


def _compare(args: argparse.Namespace) -> int:
    from wroformer_jax.results import LEGEND, differences, read, summarise, table, write_json

    if args.output and os.path.realpath(args.output) in map(os.path.realpath, args.compare):
        raise InputError(f"--output {args.output} is one of the results to compare: choose another")
    first, second = (read(path) for path in args.compare)
    paired = differences(first, second)
    for path, ours, others in ((args.compare[0], first, second), (args.compare[1], second, first)):
        if alone := sorted(set(ours.songs) - set(others.songs)):
            _say(f"only in {path}: {', '.join(alone)}")
    _print(f"{args.compare[1]} minus {args.compare[0]}\n")
    _print("\n\n".join([*(table(stem, rows, signed=True) for stem, rows in paired.items()), LEGEND]))
    if args.output:
        write_json(args.output, {stem: summarise(rows) for stem, rows in paired.items()})
    return EXIT_OK


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _separate(args: argparse.Namespace) -> int:
    """Everything that can fail early does: files, then checkpoint, then settings; then the songs one by one."""
    from wroformer_jax.audio import AUDIO_SUFFIXES

    found, empty_folders = _find_songs(args.inputs, args.output)
    for folder in empty_folders:
        _say(f"wroformer: error: no audio files in {folder} (looked for {', '.join(AUDIO_SUFFIXES)})")
    songs = [(song, info) for song in found if (info := _inspected(song, args)) is not None]
    if not songs:
        return EXIT_UNUSABLE
    settings = _settings(args)
    _refuse_to_replace_songs(found, settings)
    done = sum(_separated(song, info, settings) for song, info in songs)
    if done == 0:
        return EXIT_UNUSABLE
    return EXIT_OK if done == len(found) and not empty_folders else EXIT_SOME_FAILED


def _inspected(song: Song, args: argparse.Namespace) -> AudioInfo | None:
    from wroformer_jax.audio import inspect

    try:
        return inspect(song.source)
    except InputError as error:
        _report(error, verbose=args.verbose)
        return None


def _settings(args: argparse.Namespace) -> Settings:
    import jax

    from wroformer_jax.separation import chunk_samples
    from wroformer_jax.sources import load

    model, params = load(args.checkpoint, config=args.config)
    stems = _chosen_stems(model.config, args.stems)
    chunk = chunk_samples(model.config, args.chunk_seconds, args.overlap)
    if args.verbose:
        length = "whole songs" if chunk is None else f"chunks of {chunk / model.config.sample_rate:.2f} s"
        _say(f"{args.checkpoint}: {', '.join(model.config.stems)}; {length} on {jax.devices()[0].device_kind}")
    # Once for all songs: separating would copy the weights of each to the device otherwise.
    return Settings(model, jax.device_put(params), stems, args)


def _separated(song: Song, info: AudioInfo, settings: Settings) -> bool:
    """Separates one song; False if it could not be done, which is reported."""
    try:
        _separate_song(song, info, settings)
    except InputError as error:
        _report(error, verbose=settings.args.verbose, song=song)
        return False
    return True


def _separate_song(song: Song, info: AudioInfo, settings: Settings) -> None:
    from wroformer_jax.audio import ENCODINGS, SongWriter, read_blocks
    from wroformer_jax.separation import separate_blocks, speed, with_progress

    args, encoding = settings.args, ENCODINGS[settings.args.format]
    paths = _paths(song, settings)
    if not args.overwrite and (there := [str(path) for path in paths.values() if os.path.exists(path)]):
        raise InputError(f"{there[0]} exists: use --overwrite to replace it, or another --output")
    start = time.perf_counter()
    blocks = separate_blocks(
        settings.model,
        settings.params,
        read_blocks(song.source),
        sample_rate=info.sample_rate,
        chunk_seconds=args.chunk_seconds,
        overlap=args.overlap,
        batch_size=args.batch_size,
        tta=args.tta,
    )
    blocks = with_progress(blocks, samples=info.samples, sample_rate=info.sample_rate, label=song.source.name)
    samples = 0
    with SongWriter(
        paths, sample_rate=info.sample_rate, channels=info.channels, samples=info.samples, encoding=encoding
    ) as writer:
        for block in blocks:
            chosen = {name: block[name] for name in settings.stems}
            writer.write(chosen)
            samples += chosen[settings.stems[0]].shape[-1]
    seconds = time.perf_counter() - start
    audio_seconds = samples / info.sample_rate
    for name, excess in writer.clipped().items():
        _say(
            f"wroformer: warning: {paths[name]} is clipped: its peak is {excess:.1f} dB over full scale; "
            "use --format wav32f to keep it"
        )
    files = ", ".join(path.name for path in paths.values())
    _print(f"{song.folder}: {files} ({audio_seconds:.1f} s of audio, {speed(audio_seconds, seconds)})")


def _paths(song: Song, settings: Settings) -> dict[str, Path]:
    """The file of each stem."""
    from wroformer_jax.audio import ENCODINGS

    suffix = ENCODINGS[settings.args.format].suffix
    return {name: song.folder / f"{name}{suffix}" for name in settings.stems}


def _refuse_to_replace_songs(songs: Sequence[Song], settings: Settings) -> None:
    sources = {os.path.realpath(song.source): song.source for song in songs}
    for song in songs:
        for path in _paths(song, settings).values():
            if (source := sources.get(os.path.realpath(path))) is not None:
                raise InputError(f"{source} is a song, and a stem of {song.source} too: use another --output")


def _find_songs(inputs: Sequence[Path], output: Path) -> tuple[list[Song], list[Path]]:
    """All files named and all audio files in the folders named, each with its own folder below `output`.

    Returns:
      The songs, and the folders named that hold none.

    Raises:
      InputError: two files would be written to one place, or a folder cannot be read or is the output itself.
    """
    songs: dict[str, Song] = {}
    songs_of = {path: list(_songs_of(path, output)) for path in inputs}
    for source, relative in itertools.chain.from_iterable(songs_of.values()):
        # A name such as '...wav' would leave '..', which is another folder.
        name = relative.stem if relative.stem.strip(".") else relative.name
        song = Song(source, output / relative.parent / name)
        # casefold because some file systems do not tell a from A
        other = songs.setdefault(str(song.folder).casefold(), song)
        if other.source.absolute() != source.absolute():
            raise InputError(
                f"{other.source} and {source} would both be written to {song.folder}: "
                "separate them one at a time, with another --output for each"
            )
    return list(songs.values()), [path for path, songs_of_path in songs_of.items() if not songs_of_path]


def _songs_of(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Files to separate, and where they stand relative to the folder that was named."""
    from wroformer_jax.audio import AUDIO_SUFFIXES

    # os.path: Path's own is_dir, exists and resolve raise for names too long and for links in circles.
    if not os.path.isdir(path):
        yield path, Path(path.name)
        return
    real_output = os.path.realpath(output)
    if os.path.realpath(path) == real_output:
        raise InputError(f"{path} is input and --output: its stems would be taken for songs the next time")
    for folder, folders, files in os.walk(path, onerror=_refuse_folder):
        # Earlier stems are not songs, and hidden files are not meant.
        folders[:] = sorted(
            f for f in folders if f[0] != "." and os.path.realpath(os.path.join(folder, f)) != real_output
        )
        for file in sorted(files):
            if file[0] != "." and Path(file).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(folder, file), Path(folder, file).relative_to(path)


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _chosen_stems(config: ModelConfig, names: Sequence[str] | None) -> tuple[str, ...]:
    from wroformer_jax.separation import stem_names

    known = stem_names(config)
    for name in known:
        # Names come with the checkpoint, which may be a stranger's, and become names of files.
        if name in (".", "..") or any(c in name for c in "/\\:\0\n"):
            raise InputError(f"the checkpoint names a stem {name!r}, which cannot be the name of a file")
    for name in names or ():
        if name not in known:
            raise InputError(f"--stems {name}: this checkpoint gives {', '.join(known)}")
    return tuple(names) if names else known


def _seconds_or_whole(text: str) -> float | None:
    if text == "whole":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds, nor 'whole'")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names with commas between them")
    return names


def _report(error: InputError, *, verbose: bool, song: Song | None = None) -> None:
    """One line on stderr; errors that do not name the song get its name in front."""
    if verbose:
        traceback.print_exception(error)
    about = (
        "" if song is None or str(song.source) in str(error) or str(song.folder) in str(error) else f"{song.source}: "
    )
    _say(f"wroformer: error: {about}{error}")


def _print(text: str) -> None:
    """Prints on stdout, which refuses characters that its encoding lacks: they become escapes, as on stderr."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
