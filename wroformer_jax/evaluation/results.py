"""The results of an evaluation: a JSON file that grows song by song, CSV files, and comparisons.

The JSON file holds "format", "about", "settings", "songs" ("seconds", "state", "notes" and "stems" of each song, with
the metrics of each stem) and "summary" (by stem and metric; empty while songs are being added). null means undefined.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.statistics import METRICS, summarise
from wroformer_jax.io.files import disk_errors_named, replacing

StemScores = dict[str, dict[str, float]]  # by stem, then by metric

FORMAT = 1


@dataclasses.dataclass
class Results:
    """The scores of songs, and the settings with which they were computed."""

    settings: dict[str, Any]  # settings that affect the scores, the same for all songs
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # information that does not affect them
    songs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # as in the file
    path: Path | None = None  # the JSON file, rewritten after each song; None keeps the results in memory only

    @classmethod
    def open(cls, path: Path | None, settings: dict[str, Any], about: dict[str, Any]) -> Results:
        """Reads the results at `path` to continue them, or starts new ones if the file does not exist.

        Raises:
          InputError: the file has results of other settings, or is not a file of results.
        """
        if path is None or not os.path.lexists(path):
            return cls(settings, about, {}, path)
        earlier = read(path)
        for name in [*settings, *earlier.settings]:
            before, now = earlier.settings.get(name), settings.get(name)
            if before != now:
                raise InputError(
                    f"{path} holds results of other settings ({name}: {_shown(before)} there, {_shown(now)} now): "
                    "remove it, or choose another --output"
                )
        return dataclasses.replace(earlier, about=about, path=path)

    def holds(self, song: str, state: str) -> bool:
        """Whether the song was scored when its files were in this state."""
        return song in self.songs and self.songs[song]["state"] == state

    def add(self, song: str, scores: StemScores, *, seconds: float, state: str, notes: Sequence[str]) -> None:
        """Adds the scores of a song and writes the file; `write` updates its summary later."""
        stems = {stem: {metric: _to_json(value) for metric, value in row.items()} for stem, row in scores.items()}
        self.songs[song] = {"seconds": round(seconds, 3), "state": state, "notes": list(notes), "stems": stems}
        self._write({})  # summarising hundreds of songs takes seconds

    def drop(self, song: str) -> None:
        """Removes the scores of a song whose files have changed and can no longer be scored."""
        if self.songs.pop(song, None) is not None:
            self._write({})

    def refuse_others(self, songs: Iterable[str]) -> None:
        """Raises InputError if the results include songs other than these, which would distort the summary."""
        if others := sorted(set(self.songs) - set(songs)):
            raise InputError(
                f"{self.path} holds results of songs that are not in the data now ({', '.join(others)}): "
                "bring them back, remove the file, or choose another --output"
            )

    def write(self) -> None:
        """Writes the file with its summary, unless the results are kept in memory only.

        Raises:
          InputError: the file cannot be written.
        """
        if self.path is not None:
            self._write({stem: summarise(rows) for stem, rows in self.by_stem().items()})

    def _write(self, summary: dict[str, Any]) -> None:
        if self.path is None:
            return
        content = {
            "format": FORMAT,
            "about": self.about,
            "settings": self.settings,
            "songs": self.songs,
            "summary": summary,
        }
        write_json(self.path, content)

    def by_stem(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns the metrics by stem, then by song in alphabetical order; NaN where they are undefined."""
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for name in sorted(self.songs):
            for stem, scores in self.songs[name]["stems"].items():
                rows.setdefault(stem, {})[name] = {metric: _from_json(scores.get(metric)) for metric in METRICS}
        return rows


def read(path: str | os.PathLike) -> Results:
    """Reads a file of results.

    Raises:
      InputError: the file cannot be read, is not a file of results, or has another version's format.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a file of results of wroformer evaluate: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} is not a file of results of wroformer evaluate: choose another")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has the format {content['format']!r}, expected {FORMAT}: evaluate again")
    if not _is_well_formed(content):
        raise InputError(f"{path} holds no whole results of wroformer evaluate: choose another file")
    return Results(content["settings"], content["about"], content["songs"])


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; the file appears only once it is complete.

    Raises:
      InputError: the file cannot be written.
    """
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            # surrogateescape keeps file names that are not UTF-8
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def write_csv(path: Path, rows_of_stems: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Writes one line per stem and song; undefined values are empty.

    Args:
      path: of the CSV file.
      rows_of_stems: as `Results.by_stem` or `differences` returns it.

    Raises:
      InputError: the file cannot be written.
    """
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["song", "stem", *METRICS])
            for stem, rows in rows_of_stems.items():
                for song, row in rows.items():
                    values = ["" if math.isnan(value) else repr(value) for value in row.values()]
                    writer.writerow([song, stem, *values])


def differences(first: Results, second: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the metrics of the second results minus those of the first, by stem and song, as `Results.by_stem`.

    Only stems and songs that both results have are included. A difference is NaN if either value is undefined.

    Raises:
      InputError: the results have no stem of any song in common.
    """
    paired = {}
    all_after = second.by_stem()
    for stem, before in first.by_stem().items():
        after = all_after.get(stem, {})
        common = [song for song in before if song in after]
        if common:
            paired[stem] = {
                song: {metric: after[song][metric] - before[song][metric] for metric in METRICS} for song in common
            }
    if not paired:
        raise InputError("the two results have no stem of any song in common, so they cannot be compared")
    return paired


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _is_well_formed(content: dict[str, Any]) -> bool:
    songs = content.get("songs")
    return (
        isinstance(content.get("settings"), dict)
        and isinstance(content.get("about"), dict)
        and isinstance(songs, dict)
        and all(
            isinstance(song, dict)
            and isinstance(song.get("state"), str)
            and isinstance(song.get("stems"), dict)
            and all(
                isinstance(row, dict) and all(isinstance(value, int | float | None) for value in row.values())
                for row in song["stems"].values()
            )
            for song in songs.values()
        )
    )
