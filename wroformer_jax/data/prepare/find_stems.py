"""Finds the stems to prepare: the split, the song and the stem of each audio file.

There are three layouts, described in docs/data.md:

- "songs": a folder for each song with a file for each stem, as MUSDB18-HQ has them;
- "stems": a folder for each stem with a file for each song;
- "csv": a table of files with the columns instrum and path.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, NoReturn

from wroformer_jax.data.record_set import is_set
from wroformer_jax.data.record_writer import SPLITS
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import AUDIO_SUFFIXES
from wroformer_jax.io.folders import audio_files
from wroformer_jax.stems import MIXTURE, STEM_NAMES, SUMS, VOCALS

LAYOUTS = ("songs", "stems", "csv")

# Names of folders, and of the column "split", for the splits of a set.
_SPLIT_NAMES = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_SUFFIXES = ", ".join(AUDIO_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class FoundSong:
    """A song and the files of its stems."""

    name: str  # unique in its split; with / between the parts where it was found in folders
    split: str
    stems: Mapping[str, Path]  # in alphabetical order; with "mixture", except in songs to train on
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Found:
    """The songs to prepare."""

    layout: str
    songs: tuple[FoundSong, ...]  # by split, and then by name
    warnings: tuple[str, ...]


def find(source: str | os.PathLike, layout: str | None = None) -> Found:
    """Finds the songs of a folder or of a CSV file, without opening audio files.

    Returns names of stems in lower case and names of songs in Unicode's composed form (NFC). Skips files and folders
    whose names begin with a dot, and follows links to folders.

    Args:
      source: a folder, or a .csv file.
      layout: one of LAYOUTS, or None to detect it.

    Raises:
      InputError: no stems were found, the layout cannot be detected, the CSV cannot be read, or two files are the same
        stem of the same song.
    """
    if "://" in os.fspath(source):
        raise InputError(f"{source} is not a local path: copy the stems to a disk first")
    source = Path(source)
    if os.path.isdir(source) and layout != "csv":
        return _find_in_folder(source, layout)
    if os.path.isfile(source) and layout in ("csv", None) and (layout or source.suffix.lower() == ".csv"):
        return _checked("csv", source, _csv_rows(source), [])
    expected = "a .csv file" if layout == "csv" else "a folder" if layout else "a folder of stems, or a .csv file"
    what = "does not exist" if not os.path.lexists(source) else "is not one"
    instead = f" with --layout {layout}" if layout else ""
    raise InputError(f"{source} {what}: expected {expected}{instead}")


def counted(number: int, what: str) -> str:
    """'1 song', '2 songs'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class _File(NamedTuple):
    """An audio file with its split, song and stem."""

    split: str
    song: str
    stem: str
    path: Path


def _find_in_folder(source: Path, layout: str | None) -> Found:
    inside = audio_files(source)
    if is_set(source):
        raise InputError(f"{source} is a prepared set already: train on it, or name the folder of stems it was made of")
    if not inside:
        raise InputError(f"no audio files in {source}: it has {_other_files(source)}, looked for {_SUFFIXES}")
    located = _by_split(inside)
    relatives = [relative for _, relative, _ in located]
    guess = _layout_by_names(relatives)
    layout = layout or guess or _refuse_to_guess(source, relatives)
    song_and_stem = _by_song if layout == "songs" else _by_stem
    files, loose = [], []
    for split, relative, file in located:
        # A file that lies in no folder is a stem of the only song, or has no meaning in the layout.
        if len(relative.parts) == 1 and (relative != file or layout == "stems"):
            loose.append(file)
        else:
            files.append(_File(split, *song_and_stem(relative, source), source / file))
    warnings = [] if guess in (layout, None) else [f"--layout {layout}, though by their names these are {guess!r}"]
    beside = set(inside) - {file for _, _, file in located}
    warnings += [
        f"left out, because they {why}: {_counted(sorted(left_out), 'file')}"
        for left_out, why in (
            (beside, "lie beside the folders of the splits"),
            (loose, f"lie in no {layout[:-1]}'s folder"),
        )
        if left_out
    ]
    return _checked(layout, source, files, warnings)


def _by_split(files: list[PurePath]) -> list[tuple[str, PurePath, PurePath]]:
    """Returns (split, path inside the split's folder, path) of each file; without such folders all are to train on."""
    folders = {file.parts[0] for file in files if len(file.parts) > 2 and file.parts[0].lower() in _SPLIT_NAMES}
    if not folders:
        return [("train", file, file) for file in files]
    return [
        (_SPLIT_NAMES[file.parts[0].lower()], PurePath(*file.parts[1:]), file)
        for file in files
        if file.parts[0] in folders
    ]


def _by_song(relative: PurePath, source: Path) -> tuple[str, str]:
    """Returns song and stem of SONG/STEM.wav; files that lie in no folder belong to one song, named like `source`."""
    folder = relative.parent.as_posix()
    return source.resolve().name if folder == "." else folder, relative.stem


def _by_stem(relative: PurePath, source: Path) -> tuple[str, str]:
    """Returns song and stem of STEM/SONG.wav, where SONG may contain folders."""
    return PurePath(*relative.parts[1:]).with_suffix("").as_posix(), relative.parts[0]


def _layout_by_names(relatives: list[PurePath]) -> str | None:
    """Returns "songs" if files have usual names of stems, "stems" if folders have, and None if that is unclear."""
    files = sum(relative.stem.lower() in STEM_NAMES for relative in relatives)
    folders = sum(len(relative.parts) > 1 and relative.parts[0].lower() in STEM_NAMES for relative in relatives)
    # A song may be called "Music", so a few such names decide nothing.
    if files > 4 * folders:
        return "songs"
    return "stems" if folders > 4 * files else None


def _refuse_to_guess(source: Path, relatives: list[PurePath]) -> NoReturn:
    names = _first_of(sorted({relative.parts[0] for relative in relatives if len(relative.parts) > 1}))
    raise InputError(
        f"{source} has the folders {names or 'none'} and files such as {relatives[0].name}: say which they are, "
        "--layout songs (SONG/STEM.wav) or --layout stems (STEM/SONG.wav)"
    )


def _csv_rows(source: Path) -> Iterator[_File]:
    """Yields the files of a table; without a column "song" each file is a song by itself."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in rows.fieldnames or ()]
            if missing := [name for name in ("instrum", "path") if name not in columns]:
                raise InputError(
                    f"{source} has no column {' nor '.join(missing)}: expected the header instrum,path "
                    f"and found {','.join(columns) or 'nothing'}"
                )
            rows.fieldnames = columns
            for row in rows:
                yield _csv_file(source, rows.line_num, row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source} cannot be read as a CSV file, save it anew as UTF-8: {error}") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error


def _csv_file(source: Path, line: int, row: dict[str | None, str | None]) -> _File:
    cells = {name: (value or "").strip() for name, value in row.items() if name is not None}
    if None in row:
        raise InputError(f"{source}, line {line}, has more cells than columns: quote what has commas in it")
    if empty := [name for name in ("instrum", "path") if not cells[name]]:
        raise InputError(f"{source}, line {line}, has no {empty[0]}")
    split = _SPLIT_NAMES.get(cells.get("split", "").lower() or "train")
    if split is None:
        raise InputError(f"{source}, line {line}: the split is {cells['split']!r}, expected one of {', '.join(SPLITS)}")
    if "\0" in cells["path"]:
        raise InputError(f"{source}, line {line}, has a null character in its path")
    song = cells.get("song") or os.path.splitext(cells["path"])[0]
    return _File(split, song, cells["instrum"], source.parent / cells["path"])


def _checked(layout: str, source: Path, files: Iterable[_File], warnings: list[str]) -> Found:
    """Groups files by song. Refuses duplicate files and stems, and leaves out songs without a stem."""
    songs: dict[tuple[str, str], dict[str, Path]] = {}
    seen: dict[str, _File] = {}
    for file in files:
        name, stem = _text(file.song), _text(file.stem).lower()
        stems = songs.setdefault((file.split, name), {})
        if (first := seen.setdefault(os.path.abspath(file.path), file)) is not file:
            raise InputError(f"{source} has {file.path} twice, as {first.stem} and as {file.stem}: keep one of them")
        if (other := stems.setdefault(stem, file.path)) is not file.path:
            raise InputError(f"{other} and {file.path} are both the stem {stem} of the song {name}: keep one of them")
    found = [_song(name, split, stems) for (split, name), stems in songs.items()]
    found.sort(key=lambda song: (SPLITS.index(song.split), song.name))
    usable = [song for song in found if set(song.stems) - {MIXTURE}]
    if not usable:
        names = sorted({stem for stems in songs.values() for stem in stems})
        raise InputError(
            f"{source} has no stems to prepare: found {' and '.join(names) or 'no files'}, and nothing else"
        )
    if useless := [song.name for song in found if song not in usable]:
        warnings.append(f"left out, because they have no stem but a mixture: {_counted(useless, 'song')}")
    return Found(layout, tuple(usable), (*warnings, *_leaks(usable)))


def _song(name: str, split: str, stems: dict[str, Path]) -> FoundSong:
    """Returns a song with the files to store, and notes on those that are left out."""
    # Training sums the stems to a mixture, so a file that is a sum of other stems would count twice.
    parts = stems.keys() - {MIXTURE, VOCALS, *SUMS}
    sums = [stem for stem in SUMS if stem in stems][0 if parts else 1 :]
    unused = {*sums, *([MIXTURE] if split == "train" else [])}
    notes = tuple(f"left out: {stem}, the sum of other stems" for stem in sums)
    return FoundSong(name, split, {stem: stems[stem] for stem in sorted(stems) if stem not in unused}, notes)


def _leaks(songs: list[FoundSong]) -> Iterator[str]:
    """Yields a warning for songs whose names occur in more than one split."""
    splits: dict[str, dict[str, str]] = {}
    for song in songs:
        splits.setdefault(song.name.casefold(), {})[song.split] = song.name
    for pair in itertools.combinations(SPLITS, 2):
        if leaks := [names[pair[0]] for names in splits.values() if names.keys() >= set(pair)]:
            yield (
                f"in {pair[0]} and in {pair[1]}, by their names, so that scores will be too good: "
                f"{_counted(leaks, 'song')}"
            )


def _other_files(folder: Path) -> str:
    """Counts the files of a folder without audio, to show that it may be the wrong one: '3 .mp4, 1 .txt'."""
    names = []
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        names += [name for name in files if name[0] != "."]
    counts = collections.Counter(PurePath(name).suffix.lower() or "files without an ending" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5)) or "no files"


def _first_of(names: Iterable[object], most: int = 3) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _counted(names: Sequence[object], what: str) -> str:
    return f"{counted(len(names), what)} ({_first_of(names)})"


def _text(name: str) -> str:
    """Returns a name that can be stored: in NFC, and with bytes that are not UTF-8 escaped."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
