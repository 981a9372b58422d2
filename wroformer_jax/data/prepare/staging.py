"""Keeps an unfinished set in the folder DIR/.preparing.

A finished unit is kept there as KEY.array_record and KEY.json, so that it is never written twice. When all units are
finished, their shards are renamed into DIR, and index.json, which is written last, makes them a set. If a run is killed
while it renames, the next run reads in finishing.json which shards to rename back. Objects in a bucket are handled the
same way.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wroformer_jax.data.prepare.shards import Unit, Written, shard_file
from wroformer_jax.data.record_set import is_set
from wroformer_jax.data.record_writer import DATASET, INDEX, Storage, finish_set, shard_name
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, as_place, is_remote, num_bytes, remove_tree, write_whole
from wroformer_jax.io.files import disk_errors_named, locked

FOLDER = ".preparing"
FINISHING = "finishing.json"

_FILES_OF_A_SET = (INDEX, "features.json", "dataset_info.json", f"{DATASET}-*.array_record-*")


class Staging:
    """The directory of a set and, until the set is whole, its finished units.

    Args:
      directory: of the set, a local path or gs://.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = as_place(directory)
        self.folder = self.directory / FOLDER
        self.is_local = not is_remote(directory)

    def refuse(self, *, overwrite: bool) -> None:
        """Raises an InputError if the directory cannot be used or must not be overwritten."""
        with access(self.directory):
            if not self.directory.exists():
                return
            if not self.directory.is_dir():
                raise InputError(f"{self.directory} is not a folder: choose another --output")
            if is_set(self.directory):
                if not overwrite:
                    raise InputError(f"{self.directory} is a prepared set already: use --overwrite to replace it")
            elif not self.folder.exists() and (names := sorted(path.name for path in self.directory.iterdir())):
                raise InputError(
                    f"{self.directory} is not empty ({', '.join(names[:3])}) and not a prepared set: "
                    "choose another --output"
                )

    @contextlib.contextmanager
    def claimed(self, *, overwrite: bool) -> Iterator[None]:
        """Makes the directory if necessary, locks it, and cleans up after a run that was killed.

        Deletes the folders that it made if they are still empty at the end. A bucket cannot be locked.

        Raises:
          InputError: another process holds the lock, or the directory cannot or must not be written.
        """
        with contextlib.ExitStack() as stack:
            if self.is_local:
                self._hold(stack)
            with access(self.directory):
                self._put_in_order()
            self.refuse(overwrite=overwrite)
            yield

    def _hold(self, stack: contextlib.ExitStack) -> None:
        folder = Path(self.folder)
        with disk_errors_named(self.directory):
            made = [path for path in folder.parents if not path.exists()]
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.parent))
            for path in (*reversed(made), folder):
                stack.callback(_remove_if_empty, path)
            folder.mkdir(exist_ok=True)

    def finished(self, units: Sequence[Unit]) -> dict[str, Written]:
        """Returns the results of the units that earlier runs have finished, by their keys."""
        with access(self.directory):
            names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
            noted = {
                unit.key: json.loads((self.folder / _note(unit.key)).read_text(encoding="utf-8"))
                for unit in units
                if _note(unit.key) in names
            }
            return {
                key: Written(note["part"], tuple((song, reason) for song, reason in note["bad"]))
                for key, note in noted.items()
                if note["part"] is None or self._bytes(key) == note["part"]["bytes"]
            }

    def keep(self, key: str, written: Written) -> None:
        """Records that a unit is finished. Its shard, if it has one, is in the folder already."""
        write_whole(self.folder / _note(key), json.dumps({"part": written.part, "bad": written.bad}))

    def publish(self, storage: Storage, parts: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> None:
        """Makes a set of the finished units, which replaces an earlier one.

        Args:
          storage: of the set.
          parts: for each split, the key and the description (of `write_shard`) of each shard.
        """
        named = {
            split: [(shard_name(split, number, len(shards)), part) for number, (_, part) in enumerate(shards)]
            for split, shards in parts.items()
        }
        names = {
            key: name
            for split, shards in parts.items()
            for (key, _), (name, _) in zip(shards, named[split], strict=True)
        }
        with access(self.directory):
            # First the index: without it, the rest of an earlier set does not count as a set.
            _remove(self.directory / INDEX)
            for path in list(self.directory.iterdir()):
                if any(fnmatch.fnmatch(path.name, pattern) for pattern in _FILES_OF_A_SET):
                    path.unlink()
        write_whole(self.folder / FINISHING, json.dumps(names))
        with access(self.directory):
            for key, name in names.items():
                (self.folder / shard_file(key)).replace(self.directory / name)
        finish_set(self.directory, storage, named)
        with access(self.directory):
            remove_tree(self.folder)

    def _put_in_order(self) -> None:
        """Cleans up after a run that was killed: deletes half-written files and renames published shards back."""
        if not self.folder.exists():
            return
        for path in list(self.folder.iterdir()):
            if path.name.startswith("."):
                path.unlink()
        finishing = self.folder / FINISHING
        if finishing.exists():
            renamed = {} if is_set(self.directory) else json.loads(finishing.read_text(encoding="utf-8"))
            for key, name in renamed.items():
                if (self.directory / name).exists():
                    (self.directory / name).replace(self.folder / shard_file(key))
            finishing.unlink()

    def _bytes(self, key: str) -> int | None:
        """Returns the size of a unit's shard, or None if it does not exist."""
        path = self.folder / shard_file(key)
        return num_bytes(path) if path.exists() else None


def _remove(path: Place) -> None:
    if path.exists():
        path.unlink()


def _note(key: str) -> str:
    return f"{key}.json"


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or already deleted
        path.rmdir()
