"""What an evaluation found: kept on disk song by song, summed up, compared, and printed.

The JSON file holds "format", "about", "settings", "songs" (for each its "seconds", "state", "notes" and "stems", for
each stem its metrics) and "summary" (of each stem and metric; empty while songs are being added); null stands for a
value that is undefined.
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

Scores = dict[str, dict[str, float]]  # stem, metric

FORMAT = 1


@dataclasses.dataclass
class Results:
    """The scores of songs, and the settings that they were made with."""

    settings: dict[str, Any]  # what the scores depend on, the same for all songs
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # what they do not depend on
    songs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # as in the file
    path: Path | None = None  # rewritten with every song that is added

    @classmethod
    def open(cls, path: Path | None, settings: dict[str, Any], about: dict[str, Any]) -> Results:
        """The results at `path` if there are any, to go on with; else new ones.

        Raises:
          InputError: there are results of other settings, or something else.
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
        """Whether the song is scored, from files in this state."""
        return song in self.songs and self.songs[song]["state"] == state

    def add(self, song: str, scores: Scores, *, seconds: float, state: str, notes: Sequence[str]) -> None:
        """Keeps the scores of a song, on disk too, where `write` then brings the summary up to date."""
        stems = {stem: {metric: _to_json(value) for metric, value in row.items()} for stem, row in scores.items()}
        self.songs[song] = {"seconds": round(seconds, 3), "state": state, "notes": list(notes), "stems": stems}
        self._write({})  # summing up takes seconds for hundreds of songs

    def drop(self, song: str) -> None:
        """Forgets a song whose files have changed since and cannot be scored now."""
        if self.songs.pop(song, None) is not None:
            self._write({})

    def refuse_others(self, songs: Iterable[str]) -> None:
        """Raises an InputError if there are results of songs that are not among these, which would be mixed in."""
        if others := sorted(set(self.songs) - set(songs)):
            raise InputError(
                f"{self.path} holds results of songs that are not in the data now ({', '.join(others)}): "
                "bring them back, remove the file, or choose another --output"
            )

    def write(self) -> None:
        """Writes the file with its summary, if there is to be one.

        Raises:
          InputError: it cannot be written.
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
        """The metrics of each stem and song, NaN where they are undefined; songs in alphabetical order."""
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for name in sorted(self.songs):
            for stem, scores in self.songs[name]["stems"].items():
                rows.setdefault(stem, {})[name] = {metric: _from_json(scores.get(metric)) for metric in METRICS}
        return rows


def read(path: str | os.PathLike) -> Results:
    """Reads a file of results.

    Raises:
      InputError: there is no such file, it holds something else, or another version wrote it.
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
    """Writes JSON, whole or not at all.

    Raises:
      InputError: the file cannot be written.
    """
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            # surrogateescape: names of files that are not UTF-8
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def write_csv(path: Path, rows_of_stems: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Writes a line for each stem and song, of what `Results.by_stem` or `differences` gives; undefined is empty.

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
    """For each stem and song that both have, each metric of the second minus the first; NaN if one is undefined.

    Raises:
      InputError: they have no song and stem in common.
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
        raise InputError("the two results have no song and stem in common: there is nothing to compare")
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
