"""`wroformer separate`: songs into stems."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wroformer_jax.cli.arguments import add_model_options, add_verbose, chosen_stems, names
from wroformer_jax.cli.compiled_programs import keep_compiled_programs
from wroformer_jax.cli.output import EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE, print_out, report, say
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.io.audio import AudioInfo

# The keys of ENCODINGS in io/audio_writer.py, which imports numpy.
FORMATS = ("wav16", "wav24", "wav32f", "flac16", "flac24")

_HELP = """
The command writes OUTPUT/SONG/STEM.wav for every song, where SONG is the name of the file without its suffix. Songs in
subfolders keep their subfolder: OUTPUT/SUBFOLDER/SONG/STEM.wav. Stems have the song's sample rate, channels and length.

Exit status: 0 all songs are done, 1 some could not be used and the others are done, 2 nothing is done.
"""


class Song(NamedTuple):
    """A file to separate, and the folder for its stems."""

    source: Path
    folder: Path


class Settings(NamedTuple):
    """The model and the options, which are the same for all songs."""

    model: Any
    params: Any
    stems: tuple[str, ...]
    args: argparse.Namespace


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    separate = commands.add_parser(
        "separate",
        help="separate songs into stems",
        description="Separates songs into stems.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    separate.set_defaults(run=run, goes_on=False)
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
    add_model_options(separate)
    add(
        "--stems",
        type=names,
        metavar="A,B",
        help="stems to write (default: all, and for a model of one stem the rest)",
    )
    add(
        "--format",
        choices=FORMATS,
        default="wav24",
        help="of the stems; the number is its bits (default: wav24)",
    )
    add(
        "--tta",
        action="store_true",
        help="average over swapped channels and polarity, at three times the cost",
    )
    add("--overwrite", action="store_true", help="replace existing stems")
    add_verbose(separate)


def run(args: argparse.Namespace) -> int:
    """Checks files, checkpoint and settings first, so that mistakes show early, then separates song by song."""
    from wroformer_jax.io.audio import AUDIO_SUFFIXES

    found, empty_folders = _find_songs(args.inputs, args.output)
    for folder in empty_folders:
        say(f"wroformer: error: no audio files in {folder} (looked for {', '.join(AUDIO_SUFFIXES)})")
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
    from wroformer_jax.io.audio import inspect

    try:
        return inspect(song.source)
    except InputError as error:
        report(error, verbose=args.verbose)
        return None


def _settings(args: argparse.Namespace) -> Settings:
    import jax

    from wroformer_jax.checkpoints.loading import load
    from wroformer_jax.separation.stream import chunk_samples

    keep_compiled_programs()
    model, params = load(args.checkpoint, config=args.config)
    stems = chosen_stems(model.config, args.stems)
    chunk = chunk_samples(model.config, args.chunk_seconds, args.overlap)
    if args.verbose:
        length = "whole songs" if chunk is None else f"chunks of {chunk / model.config.sample_rate:.2f} s"
        say(f"{args.checkpoint}: {', '.join(model.config.stems)}; {length} on {jax.devices()[0].device_kind}")
    # Weights go to the device once; otherwise every song would copy them.
    return Settings(model, jax.device_put(params), stems, args)


def _separated(song: Song, info: AudioInfo, settings: Settings) -> bool:
    """Separates one song and returns True, or reports the error and returns False."""
    try:
        _separate_song(song, info, settings)
    except InputError as error:
        report(error, verbose=settings.args.verbose, about=(song.source, song.folder))
        return False
    return True


def _separate_song(song: Song, info: AudioInfo, settings: Settings) -> None:
    from wroformer_jax.io.audio import read_blocks
    from wroformer_jax.io.audio_writer import ENCODINGS, SongWriter
    from wroformer_jax.separation.progress import real_time_factor, with_progress
    from wroformer_jax.separation.stream import separate_blocks

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
        say(
            f"wroformer: warning: {paths[name]} is clipped: its peak is {excess:.1f} dB over full scale; "
            "use --format wav32f to keep it"
        )
    files = ", ".join(path.name for path in paths.values())
    print_out(f"{song.folder}: {files} ({audio_seconds:.1f} s of audio, {real_time_factor(audio_seconds, seconds)})")


def _paths(song: Song, settings: Settings) -> dict[str, Path]:
    """Returns the file of each stem."""
    from wroformer_jax.io.audio_writer import ENCODINGS

    suffix = ENCODINGS[settings.args.format].suffix
    return {name: song.folder / f"{name}{suffix}" for name in settings.stems}


def _refuse_to_replace_songs(songs: Sequence[Song], settings: Settings) -> None:
    sources = {os.path.realpath(song.source): song.source for song in songs}
    for song in songs:
        for path in _paths(song, settings).values():
            if (source := sources.get(os.path.realpath(path))) is not None:
                raise InputError(f"{source} is a song, and a stem of {song.source} too: use another --output")


def _find_songs(inputs: Sequence[Path], output: Path) -> tuple[list[Song], list[Path]]:
    """Finds the songs among files and folders, and gives each a folder of its own below `output`.

    Returns:
      The songs, and the folders without any.

    Raises:
      InputError: two songs have the same output folder, or an input folder cannot be read or is the output itself.
    """
    songs: dict[str, Song] = {}
    songs_of = {path: list(_songs_of(path, output)) for path in inputs}
    for source, relative in itertools.chain.from_iterable(songs_of.values()):
        # The stem of a name such as '...wav' is '..', which is another folder.
        name = relative.stem if relative.stem.strip(".") else relative.name
        song = Song(source, output / relative.parent / name)
        # casefold, because some file systems do not distinguish a from A
        other = songs.setdefault(str(song.folder).casefold(), song)
        if other.source.absolute() != source.absolute():
            raise InputError(
                f"{other.source} and {source} would both be written to {song.folder}: "
                "separate them one at a time, with another --output for each"
            )
    return list(songs.values()), [path for path, songs_of_path in songs_of.items() if not songs_of_path]


def _songs_of(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the files of an input to separate, each with its path relative to the input folder."""
    from wroformer_jax.io.audio import AUDIO_SUFFIXES

    # os.path, because Path.is_dir, exists and resolve raise for names that are too long and for links in a circle.
    if not os.path.isdir(path):
        yield path, Path(path.name)
        return
    real_output = os.path.realpath(output)
    if os.path.realpath(path) == real_output:
        raise InputError(f"{path} is input and --output: its stems would be taken for songs the next time")
    for folder, folders, files in os.walk(path, onerror=_refuse_folder):
        # Leave out the stems of earlier runs and hidden files.
        folders[:] = sorted(
            f for f in folders if f[0] != "." and os.path.realpath(os.path.join(folder, f)) != real_output
        )
        for file in sorted(files):
            if file[0] != "." and Path(file).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(folder, file), Path(folder, file).relative_to(path)


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
