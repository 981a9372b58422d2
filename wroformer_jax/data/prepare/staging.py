"""The place where a set comes into being: DIR/.preparing, until all of it is there.

Each finished unit lies there as KEY.array_record and KEY.json, so that it is never done twice. When all are finished,
their shards are renamed into DIR, and index.json, written last, makes them a set. The file finishing.json tells a
killed run's successor what was renamed. In a bucket it is the same, with objects.
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
from wroformer_jax.io.buckets import access, is_remote, write_whole
from wroformer_jax.io.files import disk_errors_named, locked

FOLDER = ".preparing"
FINISHING = "finishing.json"

_FILES_OF_A_SET = (INDEX, "features.json", "dataset_info.json", f"{DATASET}-*.array_record-*")


class Staging:
    """Where a set is to be, and its units on the way there.

    Args:
      directory: of the set, local or gs://.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        from etils import epath

        self.directory = epath.Path(directory)
        self.folder = self.directory / FOLDER
        self.is_local = not is_remote(directory)

    def refuse(self, *, overwrite: bool) -> None:
        """Raises an InputError if the set must not, or cannot, be written to this directory."""
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
                    f"{self.directory} is not empty ({', '.join(names[:3])}) and no prepared set: "
                    "choose another --output"
                )

    @contextlib.contextmanager
    def claimed(self, *, overwrite: bool) -> Iterator[None]:
        """Holds the directory, made if need be, for this process; what an earlier run left is put in order.

        Folders that were made in vain are taken away again. A bucket cannot be held.

        Raises:
          InputError: another process holds it, or it cannot or must not be written.
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
        """The units that earlier runs have finished, by their keys."""
        with access(self.directory):
            names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
            noted = {
                unit.key: json.loads((self.folder / _note(unit.key)).read_text())
                for unit in units
                if _note(unit.key) in names
            }
            return {
                key: Written(note["part"], tuple((song, reason) for song, reason in note["bad"]))
                for key, note in noted.items()
                if note["part"] is None or self._bytes(key) == note["part"]["bytes"]
            }

    def keep(self, key: str, written: Written) -> None:
        """Notes that a unit is finished, whose shard is in the folder."""
        write_whole(self.folder / _note(key), json.dumps({"part": written.part, "bad": written.bad}))

    def publish(self, storage: Storage, parts: Mapping[str, Sequence[tuple[str, dict[str, Any]]]]) -> None:
        """Makes finished units a set, in place of the one that may be there.

        Args:
          storage: of the set.
          parts: the key and the description of each shard of each split.
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
            # Without its index the rest of an earlier set is none.
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
            self.folder.rmtree()

    def _put_in_order(self) -> None:
        """Ends what a run was killed at: half-written files go, and what was renamed gets its old name again."""
        if not self.folder.exists():
            return
        for path in list(self.folder.iterdir()):
            if path.name.startswith("."):
                path.unlink()
        finishing = self.folder / FINISHING
        if finishing.exists():
            renamed = {} if is_set(self.directory) else json.loads(finishing.read_text())
            for key, name in renamed.items():
                if (self.directory / name).exists():
                    (self.directory / name).replace(self.folder / shard_file(key))
            finishing.unlink()

    def _bytes(self, key: str) -> int | None:
        """The size of a unit's shard, None if there is none."""
        path = self.folder / shard_file(key)
        if not path.exists():
            return None
        # epath's stat wants a local owner to have a name, which not all have in containers.
        return os.path.getsize(path) if self.is_local else path.stat().length


def _remove(path: Any) -> None:
    if path.exists():
        path.unlink()


def _note(key: str) -> str:
    return f"{key}.json"


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # it holds something by now, or is gone
        path.rmdir()
